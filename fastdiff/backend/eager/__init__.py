"""The `torch` backend: every fused op as plain tensor operations, on any device torch runs on.

It is the fallback that always works, and its formulas define the gradients. Operation order and
rounding are those of kernels/README.md, so its elementwise results equal the kernels' bit for bit
in float32 and float64 (float64 exp aside).
"""

from .discretized_gaussian_nll import discretized_gaussian_nll, discretized_gaussian_nll_backward
from .gaussian_kl import gaussian_kl, gaussian_kl_backward
from .group_norm_silu import group_norm_silu
from .noise_mse import noise_mse, noise_mse_backward
from .q_posterior import q_posterior
from .q_sample import q_sample
from .randn import randn
from .reparameterize import reparameterize, reparameterize_backward
from .reverse_step import reverse_step
from .step_log_prob import step_log_prob
from .vlb_terms import vlb_terms, vlb_terms_backward

LAUNCHERS = {
    launch.__name__: launch
    for launch in (
        randn,
        q_sample,
        reverse_step,
        step_log_prob,
        q_posterior,
        reparameterize,
        reparameterize_backward,
        noise_mse,
        noise_mse_backward,
        gaussian_kl,
        gaussian_kl_backward,
        discretized_gaussian_nll,
        discretized_gaussian_nll_backward,
        vlb_terms,
        vlb_terms_backward,
        group_norm_silu,
    )
}
"""The launchers, named as in every backend: the ops, and the backward passes that some have."""
