"""Three ways to train p(x) = ∫ p(x|z) p(z) dz, and how noisy their gradients are.

    prior        -log (1/K) Σ_k p(x|z_k),                    z_k ~ p(z)         naive Monte Carlo
    importance   -log (1/K) Σ_k p(x|z_k) p(z_k)/q(z_k|x),    z_k ~ q(z|x)       IWAE_K (Burda et al. 2016, eq. 8)
    elbo         -(1/K) Σ_k log [p(x|z_k) p(z_k)/q(z_k|x)],  z_k ~ q(z|x)       (Luo 2022, eq. 3)

The first two are -log of unbiased estimates of p(x), so by Jensen's inequality all three are at
least -log p(x) in mean. Each importance weight holds p(x|z) once: a second factor would make the
mean ∫ p(x|z)² p(z) dz, no marginal likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .bounds import LatentModel, elbo, iwae, log_weights

OBJECTIVES = ("elbo", "importance", "prior")


def objective(
    model: LatentModel, x0: Tensor, name: str, *, samples: int, seed: int | Tensor, **counter: Any
) -> Tensor:
    """The named objective [B] in nats, to be minimised in mean.

    Args:
        model: see `bounds.LatentModel`. x0: [B, ...].
        name: `prior`, `importance` or `elbo` (whose KL is sampled too; `VAE.loss` takes it in
            closed form).
        samples: K. seed, and sample_ids, step in counter: of the noise contract.

    Raises ValueError for another name.
    """
    if name not in OBJECTIVES:
        raise ValueError(
            f"fastdiff.theory.variational.objective: expected name in {list(OBJECTIVES)}, got"
            f" {name!r}."
        )
    proposal = "prior" if name == "prior" else None
    log_w = log_weights(model, x0, samples=samples, seed=seed, proposal=proposal, **counter)
    return -(elbo if name == "elbo" else iwae)(log_w)


class GradientMoments(NamedTuple):
    """Of a gradient g over its noise: |E g| (`norm`), √(tr Cov g) (`std`), and draws used.

    norm² is estimated without the bias std²/n, and is 0 where that exceeds it.
    """

    norm: float
    std: float
    draws: int


def gradient_moments(
    parameters: Iterable[Tensor], loss: Callable[[int], Tensor], seeds: Iterable[int]
) -> GradientMoments:
    """Mean and spread of the gradient of loss(seed) [B] (its mean over the batch) over the seeds,
    in float64.

    Args:
        parameters: what to differentiate by; those that the loss does not reach count as 0.
        loss: a function of the seed alone. seeds: at least two.

    Raises ValueError for fewer than two seeds.
    """
    wanted = [p for p in parameters if p.requires_grad]
    draws, mean, square = 0, torch.zeros(0, dtype=torch.float64), 0.0
    for seed in seeds:
        grads = torch.autograd.grad(
            loss(seed).mean(), wanted, allow_unused=True, materialize_grads=True
        )
        g = torch.cat([v.detach().flatten().to("cpu", torch.float64) for v in grads])
        draws += 1
        if draws == 1:
            mean = torch.zeros_like(g)
        step = g - mean
        mean = mean + step / draws
        square += float(step @ (g - mean))
    if draws < 2:
        raise ValueError(
            "fastdiff.theory.variational.gradient_moments: expected at least two seeds, got"
            f" {draws}."
        )
    variance = square / (draws - 1)
    return GradientMoments(
        max(float(mean @ mean) - variance / draws, 0.0) ** 0.5, variance**0.5, draws
    )
