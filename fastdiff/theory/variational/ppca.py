"""Probabilistic PCA: a latent-variable model with known evidence and posterior.

    z ~ N(0, I),  x|z ~ N(W z + μ, s² I)   =>   x ~ N(μ, C),  C = W Wᵀ + s² I
    p(z|x) = N(M⁻¹ Wᵀ (x - μ), s² M⁻¹),  M = Wᵀ W + s² I

(Tipping & Bishop 1999, eq. 2-4 and 6.) It is the linear VAE. If the columns of W are orthogonal, as
those of `fit` are, the posterior is a diagonal Gaussian and a diagonal encoder loses nothing (Lucas
et al. 2019): the ELBO is log p(x).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ..information import Gaussian
from ..information.distributions import LOG_2PI


class ProbabilisticPCA:
    """p(x, z) of x [B, D] and z [B, latent] in closed form; a `bounds.LatentModel`.

    Args:
        weight: W [D, latent], floating point.
        mean: μ [D].
        std: s > 0.

    `posterior` has the exact mean and the diagonal of the exact covariance; it is exact if the
    columns of W are orthogonal. Every method is differentiable in weight and mean.

    Raises ValueError for shapes that do not match and std <= 0.
    """

    def __init__(self, weight: Tensor, mean: Tensor, std: float):
        if weight.ndim != 2 or mean.shape != weight.shape[:1]:
            raise ValueError(
                "fastdiff.theory.variational.ProbabilisticPCA: expected weight [D, latent] and"
                f" mean [D], got {list(weight.shape)} and {list(mean.shape)}."
            )
        if not std > 0:
            raise ValueError(
                f"fastdiff.theory.variational.ProbabilisticPCA: expected std > 0, got {std}."
            )
        self.weight, self.mean, self.std = weight, mean, std
        self.latent = weight.shape[1]

    @classmethod
    def fit(cls, x: Tensor, latent: int) -> ProbabilisticPCA:
        """Returns the maximum-likelihood model of x [N, D]: W = U (Λ - s² I)^½.

        (Tipping & Bishop 1999, eq. 7 and 8.)
        """
        mean = x.mean(0)
        if not 1 <= latent < x.shape[1]:
            raise ValueError(
                "fastdiff.theory.variational.ProbabilisticPCA.fit: expected latent in [1,"
                f" {x.shape[1]}), got {latent}."
            )
        covariance = (x - mean).T @ (x - mean) / len(x)
        values, vectors = torch.linalg.eigh(covariance)
        noise = values[:-latent].mean()
        scale = (values[-latent:] - noise).clamp(min=0).sqrt()
        return cls((vectors[:, -latent:] * scale).flip(1), mean, float(noise.sqrt()))

    def _precision(self) -> Tensor:
        """Returns the posterior's precision M/s² [latent, latent]."""
        w = self.weight / self.std
        return w.T @ w + torch.eye(self.latent, dtype=w.dtype, device=w.device)

    def exact_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (mean [B, latent], covariance [latent, latent]) of p(z|x)."""
        covariance = torch.linalg.inv(self._precision())
        return (x - self.mean) @ self.weight @ covariance / self.std**2, covariance

    def posterior(self, x0: Tensor) -> Gaussian:
        """Returns the mean and the diagonal variances [B, latent] of p(z|x)."""
        mean, covariance = self.exact_posterior(x0)
        return Gaussian(mean, covariance.diagonal().log().expand_as(mean))

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns log N(x; μ, W Wᵀ + s² I) [B] in nats.

        It solves a system of the latent's dimension (Woodbury's identity).
        """
        size, precision = self.weight.shape[0], self._precision()
        centred = (x - self.mean) / self.std
        inner = centred @ (self.weight / self.std)
        square = centred.square().sum(-1) - (
            inner * torch.linalg.solve(precision, inner.mT).mT
        ).sum(-1)
        log_det = torch.linalg.slogdet(precision)[1] + 2 * size * math.log(self.std)
        return -0.5 * (square + log_det + size * LOG_2PI)

    def elbo(self, x: Tensor, q: Gaussian) -> Tensor:
        """Returns E_q[log p(x|z)] - KL(q‖p(z)) [B] in closed form.

        It is log p(x) minus the gap KL(q‖p(z|x)) (Luo 2022, eq. 15).
        """
        size = self.weight.shape[0]
        residual = (x - self.mean - q.mean @ self.weight.T).square().sum(-1)
        spread = (torch.exp(q.logvar) * self.weight.square().sum(0)).sum(-1)
        expected = -0.5 * (
            (residual + spread) / self.std**2 + size * (LOG_2PI + 2 * math.log(self.std))
        )
        return expected - ops.gaussian_kl(q.mean, q.logvar)

    def gap(self, x: Tensor, q: Gaussian) -> Tensor:
        """Returns KL(q‖p(z|x)) [B] against the exact posterior with its full covariance."""
        mean, covariance = self.exact_posterior(x)
        precision = self._precision()
        difference = q.mean - mean
        trace = (torch.exp(q.logvar) * precision.diagonal()).sum(-1)
        square = (difference @ precision * difference).sum(-1)
        log_det = torch.linalg.slogdet(covariance)[1]
        return 0.5 * (
            trace + square - self.latent + log_det - q.logvar.expand_as(difference).sum(-1)
        )

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns log N(z; 0, I), [..., latent] -> [...]."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def log_likelihood(self, x0: Tensor, z: Tensor) -> Tensor:
        """Returns log N(x; W z + μ, s² I) [N]."""
        square = (x0 - self.mean - z @ self.weight.T).square() / self.std**2
        return -0.5 * (square + LOG_2PI + 2 * math.log(self.std)).sum(-1)

    def draw_prior(
        self, batch: int, samples: int, *, like: Tensor, **counter: Any
    ) -> tuple[Tensor, Tensor]:
        """Draws z ~ N(0, I), see `bounds.LatentModel`."""
        shape = (batch, samples, self.latent)
        z = ops.randn(shape, dtype=like.dtype, device=like.device, stream=3, **counter)
        return z, z.new_zeros(batch, samples)

    def sample(self, n: int, *, seed: int, sample_ids: Tensor | None = None) -> Tensor:
        """Returns n samples x [n, D] = W z + μ + s eps, z from stream 0, eps from stream 1."""
        arguments = {
            "seed": seed,
            "sample_ids": sample_ids,
            "dtype": self.weight.dtype,
            "device": self.weight.device,
        }
        z = ops.randn((n, self.latent), stream=0, **arguments)  # type: ignore[arg-type]
        eps = ops.randn((n, len(self.mean)), stream=1, **arguments)  # type: ignore[arg-type]
        return z @ self.weight.T + self.mean + self.std * eps
