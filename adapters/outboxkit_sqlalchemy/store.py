"""A store on an engine of the user's own, whichever of the two databases it is for."""
