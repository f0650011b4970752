"""Dequantisation: how a density assigns probabilities to data of 256 levels.

The density of data on a lattice can grow without bound, so its logarithm is meaningless there.
Noise q(z | x) makes the data continuous, and Jensen's inequality gives a bound: -ln P(x) <=
E_q[-ln p(z) + ln q(z | x) - ln P(x | z)]. For x in [-1, 1] with the level k = round(127.5 (x + 1))
of 256:

    uniform    z = (k + u)/128 - 1 with u in (0, 1), which fills [-1, 1]. -ln P <= E[-ln p(z)] +
               D ln 128; these are the 7 bits a dimension in bits/dim = nats/(D ln 2) + 7 (Theis et
               al. 2016, section 3.1).
    centred    z = x + (u - ½)/127.5, for models of the levels themselves; D ln 127.5, 6.994 bits a
               dimension.
    gaussian   z = x + rho eps at the schedule's lowest noise level rho, the first latent of a
               variational diffusion model (Kingma et al. 2021, section 3.3). P(x | z) is the
               discretised Gaussian of `discretized_gaussian_nll`. If rho is small compared with the
               distance of two levels, the bound loses little, and the model need not learn the
               edges of a box.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops, rng
from ..backend.eager.sums import sum_samples

LIKELIHOODS = ("discretized", "gaussian")
"""Likelihoods of data at the lowest noise level or given latents: mass on 256 levels, a density."""
DEQUANTIZATIONS = ("uniform", "centred", "gaussian")
FIRST_STEP = 2**31
"""The first step of stream 2 for dequantisation next to other noise of that stream.

Training steps and the times of a bound use the steps below it."""
LEVELS = 256
_ENOUGH = 16  # fewer elements than this may be on the lattice by chance


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Returns nats/(dims ln 2), the bits per dimension of -ln P of levels.

    For a density of data scaled to [-1, 1] add 7.
    """
    return nats / (dims * math.log(2))


def on_levels(x: Tensor) -> bool:
    """Whether x [B, …] looks like 8-bit images in [-1, 1]: all elements are on the 256 levels."""
    if x.numel() == 0 or x[0].numel() < _ENOUGH:
        return False
    k = (x.double() + 1.0) * 127.5
    return bool(((k - k.round()).abs() < 1e-3).all() and (k > -0.5).all() and (k < 255.5).all())


def dequantize(
    x: Tensor,
    convention: str,
    *,
    rho: float,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Returns (z, constant [B] float64) with -ln P(x) <= E[-ln p(z) + constant].

    Args:
        x: [B, …] in [-1, 1] on 256 levels.
        convention: `uniform`, `centred` or `gaussian`; see the module.
        rho: the noise level sigma/alpha of z, used by `gaussian`.
        seed, sample_ids, step: of the noise, stream 2 of the noise contract.

    Raises:
        ValueError: an unknown convention, or data that is not on the levels.
    """
    if convention not in DEQUANTIZATIONS:
        raise ValueError(
            f"fastdiff.theory.dequantization: expected dequantization in {list(DEQUANTIZATIONS)} or"
            f" None, got {convention!r}."
        )
    k = (x.double() + 1.0) * 127.5
    if (
        x.numel()
        and float((k - k.round()).abs().max()) > 1e-3
        or bool((k.round() < 0).any() | (k.round() > 255).any())
    ):
        raise ValueError(
            "fastdiff.theory.dequantization: expected x on 256 levels of [-1, 1] with"
            f" dequantization {convention!r}, got other values. Scale images to x/127.5 - 1, or"
            " omit dequantization for continuous data."
        )
    dims, ids = x[0].numel() if len(x) else 0, sample_ids
    if ids is None:
        ids = torch.arange(len(x), device=x.device)
    if convention == "gaussian":
        eps = ops.randn(
            tuple(x.shape),
            seed=seed,
            sample_ids=ids,
            step=step,
            stream=rng.STREAM_FORWARD,
            dtype=x.dtype,
            device=x.device,
        )
        z = x + rho * eps
        log_q = -0.5 * sum_samples(eps.double().square()) - 0.5 * dims * math.log(
            2 * math.pi * rho**2
        )
        levels = ops.discretized_gaussian_nll(x, z, torch.full_like(x, math.log(rho)))
        return z, log_q + levels.double()
    groups = torch.arange(-(-dims // 4), device=x.device)
    words = rng.words(groups, seed=seed, sample_ids=ids, step=step, stream=rng.STREAM_FORWARD)
    u = (
        ((torch.stack(words, dim=-1).flatten(1)[:, :dims] >> 8) | 1)
        .double()
        .mul_(2.0**-24)
        .view(x.shape)
    )
    if convention == "uniform":
        return ((k.round() + u) / 128.0 - 1.0).to(x.dtype), _constant(x, dims * math.log(128.0))
    return ((k.round() + u - 0.5) / 127.5 - 1.0).to(x.dtype), _constant(x, dims * math.log(127.5))


def _constant(x: Tensor, value: float) -> Tensor:
    return torch.full((len(x),), value, dtype=torch.float64, device=x.device)
