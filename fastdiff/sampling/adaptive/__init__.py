"""Samplers beyond the fixed plans of `Sampler`: steps chosen by each sample's error, and noise from
a Brownian path.
"""

from .brownian import BrownianTree
from .control import StepSize
from .dpm import AdaptiveReport, integrate
from .samplers import dpm_adaptive, dpm_fast, on_tree

__all__ = [
    "AdaptiveReport",
    "BrownianTree",
    "StepSize",
    "dpm_adaptive",
    "dpm_fast",
    "integrate",
    "on_tree",
]
