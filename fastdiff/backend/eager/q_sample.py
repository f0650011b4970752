"""`q_sample` on torch: x_t = alpha_t x0 + sigma_t eps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import rng
from .common import checked_index, compute_dtype, iota, known_ids, per_sample

T_ERROR = (
    "fastdiff.q_sample: expected t in [0, {size}), got {value} at index {at}. Timesteps count"
    " from 0."
)


def q_sample(
    out: Tensor,
    x0: Tensor,
    t: Tensor | None,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    compute = compute_dtype(x0)
    a, s, valid = coefficients(x0, t, alpha, sigma, T_ERROR)
    if x0.numel() == 0:
        return
    if noise is None:
        draw = (seed, seeds, sample_ids, step, stream, fast)
        noise = regenerate(x0, *draw, where="q_sample")
    result = a * x0.to(compute) + s * noise.to(compute)
    if valid is not None:
        result = torch.where(per_sample(valid, x0), result, torch.nan)
    out.copy_(result)


def coefficients(
    x0: Tensor, t: Tensor | None, alpha: Tensor, sigma: Tensor, message: str | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns alpha and sigma, [B, 1, …] in the compute type, and the validity of t."""
    compute, valid = compute_dtype(x0), None
    if t is not None:
        t, valid = checked_index(t, alpha.shape[0], message)
        alpha, sigma = alpha.index_select(0, t), sigma.index_select(0, t)
    return per_sample(alpha.to(compute), x0), per_sample(sigma.to(compute), x0), valid


def regenerate(
    like: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int | Tensor,
    stream: int,
    fast: bool,
    *,
    where: str | None = None,
) -> Tensor:
    """Returns the op's noise, float32 in the shape of `like`; `where` as in `known_ids`."""
    batch, valid = like.shape[0], None
    if sample_ids is None:
        sample_ids = iota(batch, like.device)
    else:
        sample_ids, valid = known_ids(sample_ids, where)
    noise = rng.normals(
        math.prod(like.shape[1:]),
        seed=seed if seeds is None else seeds,
        sample_ids=sample_ids,
        step=step,
        stream=stream,
        fast=fast,
    ).view(like.shape)
    return noise if valid is None else torch.where(per_sample(valid, like), noise, torch.nan)
