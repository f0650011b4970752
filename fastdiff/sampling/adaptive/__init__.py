"""Samplers outside plans: steps chosen by each sample's error, and noise from a Brownian path."""

from .brownian import BrownianTree
from .control import StepSize
from .dpm import Report, integrate
from .samplers import dpm_adaptive, dpm_fast, on_tree

__all__ = ["BrownianTree", "Report", "StepSize", "dpm_adaptive", "dpm_fast", "integrate", "on_tree"]
