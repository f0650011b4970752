"""Score-based models: score matching, Langevin dynamics, SDEs, and the probability-flow ODE.

matching.py             losses that learn a score
sde.py                  SDEs and their reverse processes
model.py                `ScoreModel`, a trainable system
langevin.py             Langevin dynamics, alone and annealed
predictor_corrector.py  a solver's steps with Langevin corrections
flow.py                 the probability-flow ODE, from noise to data and back
velocity.py             the probability flow on a circle, for every space
embedded.py             a Runge–Kutta pair with a step size for every sample
divergence.py           traces of Jacobians, exact or by probes
local_model.py          a model without its data-parallel wrapper
"""

from .embedded import integrate
from .flow import FlowReport, probability_flow
from .langevin import LangevinReport, annealed_langevin, langevin
from .matching import denoising_score_matching, implicit_score_matching, sliced_score_matching
from .model import ScoreModel, network_for
from .predictor_corrector import predictor_corrector
from .sde import SDE, SDES, VESDE, VPSDE, Reverse, SubVPSDE

__all__ = [
    "SDE",
    "SDES",
    "FlowReport",
    "LangevinReport",
    "Reverse",
    "ScoreModel",
    "SubVPSDE",
    "VESDE",
    "VPSDE",
    "annealed_langevin",
    "denoising_score_matching",
    "implicit_score_matching",
    "integrate",
    "langevin",
    "network_for",
    "predictor_corrector",
    "probability_flow",
    "sliced_score_matching",
]
