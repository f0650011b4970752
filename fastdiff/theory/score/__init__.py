"""Score-based models: score matching, Langevin dynamics, SDEs and their reverse, the
probability-flow ODE.
"""

from .embedded import integrate
from .flow import probability_flow
from .langevin import annealed_langevin, langevin
from .matching import denoising_score_matching, implicit_score_matching, sliced_score_matching
from .model import ScoreModel, network_for
from .predictor_corrector import predictor_corrector
from .sde import SDE, SDES, VESDE, VPSDE, Reverse, SubVPSDE

__all__ = [
    "SDE",
    "SDES",
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
