"""A simulation of the unchanged apps on models of databases and a broker, in virtual time, with faults from a seed."""

from outboxkit.testing.simulation.plan import Fault, Plan, plan_of
from outboxkit.testing.simulation.record import ViolationError
from outboxkit.testing.simulation.run import Result, shrink, simulate

__all__ = ["Fault", "Plan", "Result", "ViolationError", "plan_of", "shrink", "simulate"]
