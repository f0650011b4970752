"""Solvers: one formula per file, traced into plans."""

from . import ddim, ddpm
from .plan import Plan
from .registry import SOLVERS, find, make_plan
from .trace import Linear, Trace

__all__ = ["SOLVERS", "Linear", "Plan", "Trace", "ddim", "ddpm", "find", "make_plan"]
