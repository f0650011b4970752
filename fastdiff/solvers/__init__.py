"""Solvers: one formula per family, traced into plans.

A module of formulas registers them when it is imported, so each has one line here.
"""

from . import adams as adams
from . import consistency as consistency
from . import ddim as ddim
from . import ddpm as ddpm
from . import dpm_multistep as dpm_multistep
from . import dpm_sde as dpm_sde
from . import dpm_singlestep as dpm_singlestep
from . import er_sde as er_sde
from . import flow as flow
from . import flow_sde as flow_sde
from . import karras as karras
from . import mixed_slopes as mixed_slopes
from . import repaint as repaint
from . import res as res
from . import runge_kutta as runge_kutta
from . import sa as sa
from . import sde as sde
from . import seeds as seeds
from . import unipc as unipc
from .build import make_plan
from .plan import Plan
from .registry import SOLVERS, Configuration, Peer, Solver, find, resolve
from .trace import Linear, Trace

__all__ = [
    "SOLVERS",
    "Configuration",
    "Linear",
    "Peer",
    "Plan",
    "Solver",
    "Trace",
    "find",
    "make_plan",
    "resolve",
]
