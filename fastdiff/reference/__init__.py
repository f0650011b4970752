"""The oracle: every fused op in plain NumPy, written from kernels/README.md and the papers alone.

Tests and benchmarks compare the backends with it; it is not used at run time. Noise follows the
contract to the bit, in float32. Elementwise ops are evaluated in the compute type (float64 for
float64 inputs, else float32), so float64 states give results in float64. Sums over a sample are
always float64.
"""

from .discretized_gaussian_nll import discretized_gaussian_nll
from .gaussian_kl import gaussian_kl
from .group_norm_silu import group_norm_silu
from .noise_mse import noise_mse
from .q_posterior import q_posterior
from .q_sample import q_sample
from .randn import philox4x32, randn
from .reparameterize import reparameterize
from .reverse_step import COLUMNS, reverse_step
from .step_log_prob import step_log_prob
from .vlb_terms import VLB_COLUMNS, vlb_terms

__all__ = [
    "COLUMNS",
    "VLB_COLUMNS",
    "discretized_gaussian_nll",
    "gaussian_kl",
    "group_norm_silu",
    "noise_mse",
    "philox4x32",
    "q_posterior",
    "q_sample",
    "randn",
    "reparameterize",
    "reverse_step",
    "step_log_prob",
    "vlb_terms",
]
