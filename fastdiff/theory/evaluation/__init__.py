"""Evaluation of systems: bounds and likelihoods in bits per dimension, with standard errors.

It runs in one process or several.
"""

from .measure import check, evaluate
from .request import Request
from .uniform import Uniform
from .workers import Workers

__all__ = ["Request", "Uniform", "Workers", "check", "evaluate"]
