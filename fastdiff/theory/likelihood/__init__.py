"""Likelihood: the variational bound term by term, and the exact likelihood of the probability flow.

bound.py          `elbo`, the bound by terms of single timesteps
two_variable.py   `elbo_two_variable`, the bound by log-ratios over three neighbouring timesteps
table.py          the Gaussians of the bound as tables
exact.py          `nll`, the likelihood of the probability-flow ODE
"""

from ..dequantization import DEQUANTIZATIONS, bits_per_dim
from .bound import ELBO, elbo
from .exact import NLL, nll
from .table import VARIANCES, Steps, optimal_variance, steps, vlb_table
from .two_variable import elbo_two_variable

__all__ = [
    "DEQUANTIZATIONS",
    "ELBO",
    "NLL",
    "VARIANCES",
    "Steps",
    "bits_per_dim",
    "elbo",
    "elbo_two_variable",
    "nll",
    "optimal_variance",
    "steps",
    "vlb_table",
]
