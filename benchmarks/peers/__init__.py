"""Peers: other ways to do the same work, each set up as its own documentation advises, and again tuned.

They are measured on Postgres and Redis in the same run as the library. None of them is needed to run or test it.
"""
