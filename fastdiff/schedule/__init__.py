"""Noise schedules: points (alpha, sigma) of q(x_t | x0), the curves they lie on, and the tables of
them.
"""

from .curves import flow_shift
from .points import CLEAN, SPACES, Time, on_curve
from .schedule import FORMULAS, Schedule

__all__ = ["CLEAN", "FORMULAS", "SPACES", "Schedule", "Time", "flow_shift", "on_curve"]
