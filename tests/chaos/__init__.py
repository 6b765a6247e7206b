"""Chaos: real processes and servers under attack, and a checker that knows what everybody was told.

``python -m tests.chaos --minutes 20 --store postgres``. To be read in this order: `apps` (who publishes and consumes),
`publisher` and `worker` (the processes), `workers` (starting and ending them), `link` (the network), `nemesis` with the
``*_faults`` (what befalls them), `truth` (what has to be true at the end), `run`, `report`.
"""
