"""Launches the kernels: argument lists, tile sizes, launch counters and the error word.

Triton is imported at the first launch. Every function takes validated, contiguous tensors on one
device (None where absent) and starts its kernels on the current stream without reading the device.
`launches` counts launches by kernel; `check` reads a device's error word.
"""

from .bound import bind_reverse_step
from .common import TILE, WARPS, Call, check, error_word, launches, run, tile_shape
from .noise import q_sample, q_sample_call, randn, randn_call
from .norm import (
    group_norm_moments_call,
    group_norm_silu,
    group_norm_silu_call,
    group_norm_statistics_call,
)
from .posterior import (
    q_posterior,
    q_posterior_call,
    reparameterize,
    reparameterize_backward,
    reparameterize_backward_call,
    reparameterize_call,
)
from .step import (
    reverse_step,
    reverse_step_call,
    reverse_step_calls,
    reverse_step_guidance_call,
    reverse_step_prepass_calls,
    reverse_step_rescale_call,
    reverse_step_threshold_call,
    step_log_prob,
    step_log_prob_call,
)
from .sums import (
    discretized_gaussian_nll,
    discretized_gaussian_nll_backward,
    discretized_gaussian_nll_backward_call,
    discretized_gaussian_nll_call,
    gaussian_kl,
    gaussian_kl_backward,
    gaussian_kl_backward_call,
    gaussian_kl_call,
    noise_mse,
    noise_mse_backward,
    noise_mse_backward_call,
    noise_mse_call,
    sum_chunks_call,
    vlb_terms,
    vlb_terms_backward,
    vlb_terms_backward_call,
    vlb_terms_call,
)

LAUNCHERS = {name: value for name, value in globals().items() if f"{name}_call" in globals()}
"""The functions above that launch an op or its backward pass; each has its call, `<name>_call`."""

BINDERS = {"reverse_step": bind_reverse_step}
"""The functions that bind an op's launch to arguments that stay the same."""

__all__ = [
    "BINDERS",
    "LAUNCHERS",
    "TILE",
    "WARPS",
    "Call",
    "check",
    "discretized_gaussian_nll",
    "discretized_gaussian_nll_backward",
    "discretized_gaussian_nll_backward_call",
    "discretized_gaussian_nll_call",
    "error_word",
    "gaussian_kl",
    "gaussian_kl_backward",
    "gaussian_kl_backward_call",
    "gaussian_kl_call",
    "launches",
    "group_norm_moments_call",
    "group_norm_silu",
    "group_norm_silu_call",
    "group_norm_statistics_call",
    "noise_mse",
    "noise_mse_backward",
    "noise_mse_backward_call",
    "noise_mse_call",
    "q_posterior",
    "q_posterior_call",
    "q_sample",
    "q_sample_call",
    "randn",
    "randn_call",
    "reparameterize",
    "reparameterize_backward",
    "reparameterize_backward_call",
    "reparameterize_call",
    "reverse_step",
    "reverse_step_call",
    "reverse_step_calls",
    "reverse_step_guidance_call",
    "reverse_step_prepass_calls",
    "reverse_step_rescale_call",
    "reverse_step_threshold_call",
    "run",
    "step_log_prob",
    "step_log_prob_call",
    "sum_chunks_call",
    "tile_shape",
    "vlb_terms",
    "vlb_terms_backward",
    "vlb_terms_backward_call",
    "vlb_terms_call",
]
