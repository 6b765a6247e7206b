"""Crash points: every await of the library, one after the other, and six things that can go wrong at it.

`sites` finds the awaits in the library's source, `tracing` meets them in a process that runs it, `faults` are what goes
wrong there. A `nursery` forks a victim which plays a `scenario` with a fault armed at one point, and then an heir which
goes on where that one ended, until all is quiet; `checking` looks at what both left in the databases, with plain drivers.
`matrix` does so for all points: ``python -m tests.crash``.
"""
