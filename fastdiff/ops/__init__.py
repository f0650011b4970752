"""The fused ops. Each validates its arguments, chooses a backend, launches and differentiates.

They are registered with torch.library as `fastdiff::<name>`.
"""

from .discretized_gaussian_nll import discretized_gaussian_nll
from .gaussian_kl import gaussian_kl
from .group_norm_silu import group_norm_silu
from .noise_mse import noise_mse
from .q_posterior import q_posterior
from .q_sample import q_sample
from .randn import randn
from .reparameterize import reparameterize
from .reverse_step import reverse_step
from .step import StepArguments as StepArguments  # the arguments of reverse_step
from .step_log_prob import step_log_prob
from .vlb_terms import vlb_terms

__all__ = [
    "discretized_gaussian_nll",
    "gaussian_kl",
    "group_norm_silu",
    "noise_mse",
    "q_posterior",
    "q_sample",
    "randn",
    "reparameterize",
    "reverse_step",
    "step_log_prob",
    "vlb_terms",
]
