"""Differentiable networks with the exact score of their data, for schedules of every space.

A network's time is float32, which would round it. These networks get the index of a point in their
list of points, which holds alpha and sigma in float64.

The data are a mixture Σ w_k N(m_k, s_k² I) over vectors, or a Gaussian of full covariance. With
noise both remain a mixture and a Gaussian, so scores, densities and the probability flow of one
Gaussian are closed forms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import Schedule, prediction
from fastdiff.schedule import Time


class Exact:
    """The optimal network of a prediction type; a subclass defines the data by `x0`.

    x0(x, alpha, sigma) is E[x0 | x].
    """

    def __init__(self, kind: str = "v"):
        self.kind = kind
        self.points: list[Time] = []
        self.rows: list[int] = []  # of each call

    def network_time(self, point: Time) -> float:
        assert len(self.points) < 2**24, "beyond, float32 has no number of its own for each point"
        self.points.append(point)
        return float(len(self.points) - 1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows.append(len(x))
        numbers = [int(v) for v in (t[:1] if len(t) and bool((t == t[0]).all()) else t)]
        points = [self.points[i] for i in numbers]
        columns = torch.tensor([(p.alpha, p.sigma) for p in points], dtype=x.dtype).reshape(
            -1, 2, *(1,) * (x.ndim - 1)
        )
        return self.output(x, columns[:, 0], columns[:, 1])

    def output(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        x0 = self.x0(x, alpha, sigma)
        return prediction.target(self.kind, x0, (x - alpha * x0) / sigma, alpha, sigma)

    def x0(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        raise NotImplementedError


class Mixture(Exact):
    """Σ w_k N(m_k, s_k² I): weights [K], means [K, D], stds [K]."""

    def __init__(self, weights: Any, means: Any, stds: Any, kind: str = "v"):
        super().__init__(kind)
        self.weights, self.means, self.stds = (
            torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, stds)
        )

    def _parts(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x - alpha m_k [K, B, …], variances [K, B, …] and log(w_k density_k(x)) [K, B]."""
        k = (-1, 1) + (1,) * (x.ndim - 1)
        means = self.means.to(x.dtype).reshape(len(self.means), 1, *x.shape[1:])
        off = x - alpha * means
        variance = alpha**2 * self.stds.to(x.dtype).view(k) ** 2 + sigma**2 + 0 * off[:, :1]
        log = -0.5 * (off**2 / variance + torch.log(2 * math.pi * variance)).flatten(2).sum(2)
        return off, variance, log + self.weights.to(x.dtype).log()[:, None]

    def x0(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        off, variance, log = self._parts(x, alpha, sigma)
        share = torch.softmax(log, dim=0).view(*log.shape, *(1,) * (x.ndim - 1))
        k = (-1, 1) + (1,) * (x.ndim - 1)
        means = self.means.to(x.dtype).reshape(len(self.means), 1, *x.shape[1:])
        return (share * (means + alpha * self.stds.to(x.dtype).view(k) ** 2 / variance * off)).sum(
            0
        )

    def log_density(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """ln p(alpha x0 + sigma eps = x), [B]."""
        return torch.logsumexp(self._parts(x, alpha, sigma)[2], dim=0)

    def score(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(self.log_density(leaf, alpha, sigma).sum(), leaf)[0]


class Gaussian(Exact):
    """N(mean, covariance): mean [D], covariance [D, D]."""

    def __init__(self, mean: Any, covariance: Any, kind: str = "v"):
        super().__init__(kind)
        self.mean, self.covariance = (
            torch.as_tensor(v, dtype=torch.float64) for v in (mean, covariance)
        )
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def x0(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        mean, values, vectors = (v.to(x.dtype) for v in (self.mean, self.values, self.vectors))
        off = (x - alpha * mean) @ vectors
        return mean + (alpha * values / (alpha**2 * values + sigma**2) * off) @ vectors.T

    def flow_nll(self, x: Tensor, schedule: Schedule, low: Time | None = None) -> np.ndarray:
        """Returns -ln p(x) [B] by the probability flow from the point `low` to the prior.

        `low` is the schedule's cleanest point by default. With y = x/|(alpha, sigma)| and
        (cos, sin) = (alpha, sigma)/|(alpha, sigma)|, y - cos m grows along each eigenvector of the
        covariance with the root of its variance cos² value + sin².
        """
        low = low or schedule.at(0)
        high = schedule.at(int(np.flatnonzero(np.isfinite(schedule.log_snr))[-1]))
        sizes = [math.hypot(p.alpha, p.sigma) for p in (low, high)]
        (c0, s0), (c1, s1) = (
            (p.alpha / n, p.sigma / n) for p, n in zip((low, high), sizes, strict=True)
        )
        values, vectors, mean = self.values.numpy(), self.vectors.numpy(), self.mean.numpy()
        before, after = c0**2 * values + s0**2, c1**2 * values + s1**2
        off = c0 * (x.numpy() - mean) @ vectors * np.sqrt(after / before)
        end = c1 * mean @ vectors + off
        deviation = (1.0 if schedule.space == "vp" else high.sigma) / sizes[1]
        log_prior = -0.5 * (end / deviation) ** 2 - 0.5 * math.log(2 * math.pi * deviation**2)
        return -(log_prior + 0.5 * np.log(after / before) + math.log(c0)).sum(1)


SCHEDULES = {
    "vp": Schedule.vp(1000),
    "discrete": Schedule.linear(1000),
    "ve": Schedule.ve(1000, sigma_min=0.01, sigma_max=80.0),
    "flow": Schedule.flow(1000),
    "sub_vp": Schedule.sub_vp(1000),
}
