"""Mutants of the library, which crash points must find."""


def apply(name: str) -> None:
    """Change the library in this process; does nothing without a name."""
