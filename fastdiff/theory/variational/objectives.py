"""Three objectives to train p(x) = ∫ p(x|z) p(z) dz, and the noise of their gradients.

    prior        -log (1/K) Σ_k p(x|z_k),                    z_k ~ p(z)     naive Monte Carlo
    importance   -log (1/K) Σ_k p(x|z_k) p(z_k)/q(z_k|x),    z_k ~ q(z|x)   IWAE_K
    elbo         -(1/K) Σ_k log [p(x|z_k) p(z_k)/q(z_k|x)],  z_k ~ q(z|x)   ELBO

(Burda et al. 2016, eq. 8; Luo 2022, eq. 4.) The first two are -log of unbiased estimates of p(x),
so by Jensen's inequality all three are at least -log p(x) in the mean. Each importance weight
contains p(x|z) once and p(z): with p(x|z) in place of p(z) the mean would be ∫ p(x|z)² dz, which is
not a marginal likelihood.
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
    """Returns the objective `name` [B] in nats; training minimises its mean.

    Args:
        model: see `bounds.LatentModel`.
        x0: [B, ...].
        name: `prior`, `importance` or `elbo`. The KL of `elbo` is sampled too; `VAE.loss` computes
            it in closed form.
        samples: K.
        seed, and sample_ids and step in counter: of the noise contract.

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
    """The moments of a gradient g over its noise.

    Attributes:
        norm: |E g|. Its square is estimated without the bias std²/n, and is 0 if the bias is
            larger.
        std: √(tr Cov g).
        draws: the number of draws.
    """

    norm: float
    std: float
    draws: int


def gradient_moments(
    parameters: Iterable[Tensor], loss: Callable[[int], Tensor], seeds: Iterable[int]
) -> GradientMoments:
    """Returns mean and spread over the seeds of the gradient of mean(loss(seed)), in float64.

    Args:
        parameters: the gradient is taken with respect to these; it is 0 for those that the loss
            does not depend on.
        loss: seed -> [B]; a function of the seed only.
        seeds: at least two.

    Raises ValueError for fewer than two seeds.
    """
    differentiated = [p for p in parameters if p.requires_grad]
    draws, mean, square = 0, torch.zeros(0, dtype=torch.float64), 0.0
    for seed in seeds:
        grads = torch.autograd.grad(
            loss(seed).mean(), differentiated, allow_unused=True, materialize_grads=True
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
