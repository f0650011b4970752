"""`reparameterize` on torch: z = mean + exp(logvar / 2) eps."""

from __future__ import annotations

from torch import Tensor

from .common import compute_dtype, store
from .elementary import exp
from .q_sample import regenerate


def reparameterize(
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    if z.numel() == 0:
        return
    compute = compute_dtype(mean)
    draw = (seed, seeds, sample_ids, step, stream, fast)
    eps = regenerate(mean, *draw, where="reparameterize").to(compute)
    z.copy_(mean.to(compute) + exp(logvar.to(compute) * 0.5) * eps)


def reparameterize_backward(
    g_mean: Tensor | None,
    g_logvar: Tensor | None,
    grad: Tensor,
    logvar: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    if grad.numel() == 0:
        return
    compute = compute_dtype(grad)
    g = grad.to(compute)
    if g_mean is not None:
        store(g_mean, g)
    if g_logvar is not None:
        eps = regenerate(grad, seed, seeds, sample_ids, step, stream, fast).to(compute)
        store(g_logvar, (g * eps) * (exp(logvar.to(compute) * 0.5) * 0.5))
