"""Solvers: one formula per family, traced into plans."""

from . import (
    adams,
    consistency,
    ddim,
    ddpm,
    dpm_multistep,
    dpm_sde,
    dpm_singlestep,
    flow,
    karras,
    repaint,
    sa,
    sde,
    unipc,
)
from .plan import Plan
from .registry import SOLVERS, find, make_plan
from .trace import Linear, Trace

__all__ = [
    "SOLVERS",
    "Linear",
    "Plan",
    "Trace",
    "adams",
    "consistency",
    "ddim",
    "ddpm",
    "dpm_multistep",
    "dpm_sde",
    "dpm_singlestep",
    "find",
    "flow",
    "karras",
    "make_plan",
    "repaint",
    "sa",
    "sde",
    "unipc",
]
