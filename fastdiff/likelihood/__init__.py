"""Likelihood: the variational bound term by term, and the exact likelihood of the probability-flow ODE."""

from .table import VARIANCES, vlb_table

__all__ = ["VARIANCES", "vlb_table"]
