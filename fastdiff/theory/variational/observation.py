"""Likelihoods p(x|z): a Gaussian around a decoder's mean, as a density or as mass on 256 levels.

    isotropic   N(f(z), s² I), s fixed or one learned number
    diagonal    N(f(z), diag s(z)²)
    full        N(f(z), L(z) L(z)ᵀ), L lower triangular

With s fixed, -log p(x|z) = ½‖x - f(z)‖²/s² + const: its gradients are those of the squared error.
The discretised likelihood of 8-bit images is the Gaussian's mass on the level's bin (Ho et al.
2020, eq. 13; `ops.discretized_gaussian_nll`). The first and the last bin are open, so that black
pixels cost no bits if the mean is far below -1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ..dequantization import LIKELIHOODS
from ..information.distributions import LOG_2PI

COVARIANCES = ("isotropic", "diagonal", "full")


class Normal(NamedTuple):
    """A mean [N, ...] and a log standard deviation that broadcasts to it."""

    mean: Tensor
    log_std: Tensor


class Correlated(NamedTuple):
    """A mean [N, ...] of D elements and the Cholesky factor [N, D, D] of the covariance."""

    mean: Tensor
    factor: Tensor


class Observation(nn.Module):
    """Computes p(x|z) from the output of a decoder network.

    Args:
        shape: of x.
        likelihood: `gaussian` (density) or `discretized` (mass on 256 levels of [-1, 1]).
        covariance: one of COVARIANCES; `full` for a density only.
        std: the standard deviation of the isotropic covariance; None to learn it.
        initial_std: the approximate initial value of a learned standard deviation.
        min_log_std: the floor of learned log standard deviations, approached smoothly. Without it a
            density grows without bound if the data are on a manifold.
        where: the name that error messages begin with.

    Attributes:
        per_element: the numbers that a decoder computes for each element of x.
        extra: the further numbers that it computes for a sample.

    Raises ValueError for other names and combinations.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        likelihood: str,
        covariance: str,
        std: float | None,
        initial_std: float,
        min_log_std: float,
        *,
        where: str = "fastdiff.theory.variational.VAE",
    ):
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(
                f"{where}: expected likelihood in {list(LIKELIHOODS)}, got {likelihood!r}."
            )
        if covariance not in COVARIANCES:
            raise ValueError(
                f"{where}: expected covariance in {list(COVARIANCES)}, got {covariance!r}."
            )
        if covariance == "full" and likelihood == "discretized":
            raise ValueError(
                f"{where}: expected likelihood 'gaussian' with a full covariance, got"
                " 'discretized'. The mass of a correlated Gaussian on a bin has no closed form."
            )
        if std is not None and (covariance != "isotropic" or not std > 0):
            raise ValueError(
                f"{where}: expected std > 0 with covariance 'isotropic', got {std} with"
                f" {covariance!r}."
            )
        if not initial_std > math.exp(min_log_std):
            raise ValueError(
                f"{where}: expected initial_std above its floor e^{min_log_std:g}, got"
                f" {initial_std}."
            )
        self.shape, self.likelihood, self.covariance, self.min_log_std = (
            shape,
            likelihood,
            covariance,
            min_log_std,
        )
        self._start = math.log(initial_std)
        self.fixed = None if std is None else math.log(std)
        size = math.prod(shape)
        self.per_element = 2 if covariance == "diagonal" else 1
        self.extra = size * (size + 1) // 2 if covariance == "full" else 0
        self.log_std = (
            nn.Parameter(torch.zeros(())) if covariance == "isotropic" and std is None else None
        )

    def forward(self, values: Tensor, extra: Tensor | None) -> Normal | Correlated:
        """Returns p(x|z) for a decoder's values [N, per_element, *shape] and extra [N, extra]."""
        mean = values[:, 0]
        if self.covariance == "full":
            assert extra is not None
            return Correlated(mean, self._factor(extra))
        if self.covariance == "diagonal":
            return Normal(mean, self._floor(values[:, 1]))
        if self.log_std is not None:
            return Normal(mean, self._floor(self.log_std))
        return Normal(mean, mean.new_tensor(self.fixed))

    def _floor(self, raw: Tensor) -> Tensor:
        return self.min_log_std + F.softplus(raw + self._start - self.min_log_std)

    def _factor(self, extra: Tensor) -> Tensor:
        size = math.prod(self.shape)
        row, column = torch.tril_indices(size, size, device=extra.device)
        entries = torch.where(row == column, torch.exp(self._floor(extra)), extra)
        return extra.new_zeros(len(extra), size, size).index_put(
            (torch.arange(len(extra))[:, None], row, column), entries
        )

    def log_prob(self, x0: Tensor, p: Normal | Correlated) -> Tensor:
        """Returns log p(x0|z) [N] in nats."""
        if isinstance(p, Correlated):
            white = torch.linalg.solve_triangular(
                p.factor, (x0 - p.mean).flatten(1)[..., None], upper=False
            )[..., 0]
            log_det = p.factor.diagonal(dim1=1, dim2=2).log().sum(-1)
            return -0.5 * (white.square() + LOG_2PI).sum(-1) - log_det
        if self.likelihood == "discretized":
            return -ops.discretized_gaussian_nll(x0, p.mean, p.log_std)
        square = (x0 - p.mean).square() * torch.exp(-2 * p.log_std)
        return -(0.5 * (square + LOG_2PI) + p.log_std).flatten(1).sum(-1)

    def sample(self, p: Normal | Correlated, eps: Tensor) -> Tensor:
        """Returns x ~ p(x|z), computed from normals eps in x's shape.

        The samples of a discretised likelihood are on the 256 levels.
        """
        if isinstance(p, Correlated):
            return p.mean + (p.factor @ eps.flatten(1)[..., None])[..., 0].view_as(p.mean)
        x = p.mean + torch.exp(p.log_std) * eps
        if self.likelihood == "discretized":
            # the level of the bin that contains x; the outer bins are open
            x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        return x
