"""Benchmarks: ``python -m benchmarks NAME``.

Each starts the servers it needs, measures a limit beside the library in the same interleaved rounds, by code that does the
least work that could do the job, and reports medians and ratios: absolute figures of a shared machine say little.
"""
