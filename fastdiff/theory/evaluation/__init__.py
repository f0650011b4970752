"""Evaluation of systems: bounds and likelihoods in bits a dimension with standard errors, on one
process or several.
"""

from .measure import Request, evaluate
from .uniform import Uniform
from .workers import Workers

__all__ = ["Request", "Uniform", "Workers", "evaluate"]
