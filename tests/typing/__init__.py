"""Read by type checkers only: what they say about programs that use the library."""
