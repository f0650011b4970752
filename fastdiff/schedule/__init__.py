"""Noise schedules: the coefficients alpha and sigma of q(x_t | x0) over time.

space.py        the geometry of VP, VE, flow and sub-VP: how alpha and sigma relate
points.py       one point of a schedule
curves.py       continuous schedules: a point at every time
noise_table.py  the table over the timesteps, and how it is read
schedule.py     `Schedule` and its constructors
checks.py       checks of their arguments
"""

from .curves import flow_shift
from .points import CLEAN, Time
from .schedule import FORMULAS, Schedule
from .space import SPACES, Space, geometry, on_curve

__all__ = [
    "CLEAN",
    "FORMULAS",
    "SPACES",
    "Schedule",
    "Space",
    "Time",
    "flow_shift",
    "geometry",
    "on_curve",
]
