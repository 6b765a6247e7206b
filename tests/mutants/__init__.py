"""Mutants: the library with one promise's guard taken out, to see that the proofs notice.

``python -m tests.mutants [NAME ...]``. `catalogue` has them, `copying` makes a mutant of a copy of the package, `proving` runs
proofs on it. Those of ``tests/simulation/mutants.py`` are patched into a running simulation instead, and are in the table too.
"""
