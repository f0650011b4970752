"""The `torch` backend: every fused op as plain tensor operations, for any device torch runs on.

It is the fallback that always works, and the formula a gradient is taken of. Operation order and
rounding are those of kernels/README.md, so its elementwise results equal the kernels' bit for bit
in float32 and float64 (float64 exp aside).
"""

from ...table import OPS
from .discretized_gaussian_nll import discretized_gaussian_nll, discretized_gaussian_nll_backward
from .gaussian_kl import gaussian_kl, gaussian_kl_backward
from .group_norm_silu import group_norm_silu
from .noise_mse import noise_mse, noise_mse_backward
from .q_posterior import q_posterior
from .q_sample import q_sample
from .randn import randn
from .reparameterize import reparameterize, reparameterize_backward
from .reverse_step import reverse_step
from .vlb_terms import vlb_terms, vlb_terms_backward

LAUNCHERS = {
    name: globals()[name]
    for op in OPS
    for name in (op, f"{op}_backward")
    if name in globals()
}
"""The launchers, by the names that every backend shares: an op, and where it has one its backward
pass.
"""
