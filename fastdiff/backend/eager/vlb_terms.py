"""`vlb_terms` on torch: the posterior's KL to the model's Gaussian, at the first step the NLL."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import checked_index, per_sample, store
from .discretized_gaussian_nll import bins
from .elementary import exp
from .gaussian_kl import kl_gradient, kl_term
from .reverse_step import split
from .sums import sum_samples

T_ERROR = (
    "fastdiff.vlb_terms: expected t in [0, {size}), got {value} at index {at}. Timesteps count"
    " from 0."
)


def vlb_terms(
    terms: Tensor,
    workspace: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> None:
    t, valid = checked_index(t, len(table), T_ERROR)
    value, _, _ = _evaluate(terms.dtype, x0, x_t, model_output, table, t)
    total = sum_samples(value)
    terms.copy_(total if valid is None else torch.where(valid, total, torch.nan))


def vlb_terms_backward(
    g_output: Tensor,
    grad: Tensor,
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor,
    t: Tensor,
) -> None:
    t, valid = checked_index(t, len(table), None)
    _, by_out, by_v = _evaluate(grad.dtype, x0, x_t, model_output, table, t)
    g = per_sample(grad if valid is None else torch.where(valid, grad, torch.nan), x0)
    parts = [g * by_out] if model_output.shape == x0.shape else [g * by_out, g * by_v]
    store(g_output, torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])


def _evaluate(
    compute: torch.dtype, x0: Tensor, x_t: Tensor, model_output: Tensor, table: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the terms and their derivatives by the two halves of the output."""
    rows = table.index_select(0, t).to(compute)
    x0_x, x0_out, bound, mean_x0, mean_x, logvar_q, lo, hi, first = (
        per_sample(c, x0) for c in rows.unbind(1)
    )
    x, noisy, output = (v.to(compute) for v in (x0, x_t, model_output))
    out, v = split(output, x)
    free = x0_x * noisy + x0_out * out
    above, below = free > bound, free < -bound
    predicted = torch.where(above, bound, torch.where(below, -bound, free))
    logvar = (lo if v is None else lo + (hi - lo) * ((v + 1) * 0.5)).expand_as(x)

    d, m, inverse = logvar_q - logvar, mean_x0 * (x - predicted), exp(-logvar)
    by_m, _, by_logvar = kl_gradient(d, m, inverse)
    b = bins(x, mean_x0 * predicted + mean_x * noisy, logvar * 0.5)
    start = first != 0
    term = torch.where(start, b.nll, kl_term(d, m, inverse))
    by_x0 = torch.where(start, mean_x0 * b.by_mean, -(mean_x0 * by_m))
    by_logvar = torch.where(start, b.by_log_scale * 0.5, by_logvar)
    return term, torch.where(above | below, 0.0, x0_out * by_x0), ((hi - lo) * 0.5) * by_logvar
