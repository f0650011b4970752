"""`q_posterior` on torch: mean and variance of q(x_{t-1} | x_t, x0)."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import checked_index, compute_dtype, per_sample

T_ERROR = (
    "fastdiff.q_posterior: expected t in [0, {size}), got {value} at index {at}. Timesteps count"
    " from 0."
)


def q_posterior(
    mean: Tensor,
    variance: Tensor,
    log_variance: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor,
) -> None:
    compute, times = compute_dtype(x0), len(alphas_cumprod)
    on_x0, on_x, var, valid = coefficients(t, alphas_cumprod, T_ERROR)
    log_var = (
        coefficients(t.clamp(min=1), alphas_cumprod)[2]
        if times > 1
        else 1.0 - alphas_cumprod.expand(len(t))
    )
    values = [v.to(compute) for v in (on_x0, on_x, var, log_var.log())]
    if valid is not None:
        values = [torch.where(valid, v, torch.nan) for v in values]
    mean.copy_(
        per_sample(values[0], x0) * x0.to(compute) + per_sample(values[1], x0) * x_t.to(compute)
    )
    variance.copy_(values[2])
    log_variance.copy_(values[3])


def coefficients(
    t: Tensor, alphas_cumprod: Tensor, message: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Returns the mean's factors of x0 and x_t and the variance, float64 [B], and t's validity."""
    t, valid = checked_index(t, len(alphas_cumprod), message)
    a = alphas_cumprod.index_select(0, t)
    p = torch.where(t > 0, alphas_cumprod.index_select(0, (t - 1).clamp(min=0)), 1.0)
    alpha = a / p
    beta = 1.0 - alpha
    left = (1.0 - p) / (1.0 - a)
    return p.sqrt() * (beta / (1.0 - a)), alpha.sqrt() * left, beta * left, valid
