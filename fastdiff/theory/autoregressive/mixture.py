"""The law of one element given those before it: a mixture of K components.

    density   Σ_k π_k N(x; μ_k, s_k²)
    levels    Σ_k π_k (S((x + h - μ_k)/s_k) - S((x - h - μ_k)/s_k)),   h = 1/255

with S(a) = 1/(1 + e^{-a}). The second one is the mass of logistic distributions on a level of
[-1, 1] (Salimans et al. 2017, eq. 2); the first and the last level take the rest of the line. With
a = (x - h - μ)/s and b = a + 2h/s the mass of a component is S(b) S(-a) (1 - e^{a-b}), whose
logarithm loses no digits in the tails.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..information.distributions import LOG_2PI

HALF = 1.0 / 255.0
"""Half the distance of two of 256 levels of [-1, 1]."""


class Mixture(NamedTuple):
    """log π [N, K, …], normalised over K, and mean and log scale of the components, [N, K, …]."""

    log_share: Tensor
    mean: Tensor
    log_scale: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """ln Σ_k π_k N(x; μ_k, s_k²), [N, …]."""
        square = (x[:, None] - self.mean).square() * torch.exp(-2 * self.log_scale)
        parts = -0.5 * (square + LOG_2PI) - self.log_scale
        return torch.logsumexp(self.log_share + parts, dim=1)

    def log_mass(self, x: Tensor) -> Tensor:
        """ln of the probability of the levels x [N, …] in [-1, 1]."""
        x = x[:, None]
        rate = torch.exp(-self.log_scale)
        low, high = (x - HALF - self.mean) * rate, (x + HALF - self.mean) * rate
        first, last = x <= -1 + HALF, x >= 1 - HALF
        nothing = torch.zeros_like(low)
        parts = (
            torch.where(last, nothing, F.logsigmoid(high))
            + torch.where(first, nothing, F.logsigmoid(-low))
            + torch.where(first | last, nothing, torch.log(-torch.expm1(-2 * HALF * rate)))
        )
        return torch.logsumexp(self.log_share + parts, dim=1)

    def sample(self, choice: Tensor, noise: Tensor, *, levels: bool) -> Tensor:
        """Draws x [N, …] from standard normals of that shape, on levels or of the density.

        The component follows from the quantile of `choice`, the place in it from that of `noise`.
        """
        u = torch.special.ndtr(choice.double())[:, None]
        k = (u > self.log_share.double().exp().cumsum(1)).sum(1, keepdim=True)
        k = k.clamp(max=self.mean.shape[1] - 1)
        mean, scale = self.mean.gather(1, k)[:, 0], self.log_scale.gather(1, k)[:, 0].exp()
        if not levels:
            return mean + scale * noise
        noise = noise.double()
        logistic = torch.special.log_ndtr(noise) - torch.special.log_ndtr(-noise)
        x = (mean.double() + scale.double() * logistic).clamp(-1, 1)
        return (((x + 1) * 127.5).round() / 127.5 - 1).to(mean.dtype)


def split(values: Tensor, min_log_scale: float, initial_scale: float) -> Mixture:
    """The mixture of a network's output [N, 3, K, …]: logits, means, numbers that grow with log s.

    At the output 0 a scale is about `initial_scale`; its logarithm stays above `min_log_scale`.
    """
    start = math.log(initial_scale) - min_log_scale
    log_scale = min_log_scale + F.softplus(values[:, 2] + start)
    return Mixture(values[:, 0].log_softmax(1), values[:, 1], log_scale)
