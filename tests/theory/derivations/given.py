"""What the lines' examples share: quadrature, derivatives, Gaussians and mixtures in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRID = np.linspace(-16.0, 16.0, 2001)
"""For integrals of smooth functions that are 0 at both ends: there the trapezoid rule has no error
but rounding.
"""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def over_grid(values: Array) -> Array:
    """The integral of values on GRID, their last axis."""
    return values.sum(-1) * (GRID[1] - GRID[0])


def between(f: Callable[[Array], Array], start: Any, end: Any) -> Array:
    """The integral of f from start to end, arrays of one shape, by 40 Gauss–Legendre points.

    f gets arrays of start's shape and one more axis.
    """
    low, high = np.asarray(start)[..., None], np.asarray(end)[..., None]
    half = 0.5 * (high - low)
    return (f(low + half * (1 + _NODES)) * _WEIGHTS * half).sum(-1)


def slope(f: Callable[[Any], Any], x: Any) -> Array:
    """df/dx by a complex step, which has no error but rounding (Squire & Trapp 1998).

    f must be analytic: no abs, no comparison, no conjugate.
    """
    return np.imag(f(np.asarray(x) + 1e-30j)) / 1e-30


def normal(x: Any, mean: Any, variance: Any) -> Any:
    """N(x; mean, variance)."""
    return np.exp(log_normal(x, mean, variance))


def log_normal(x: Any, mean: Any, variance: Any) -> Any:
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


class Mixture:
    """A mixture of normals, and its law after x_t = alpha x_0 + sigma noise."""

    shares, means, variance = np.array([0.3, 0.7]), np.array([-1.5, 1.0]), 0.16

    def parts(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Any:
        """share times density of each component at x, on a further axis."""
        off, total = self._off(x, alpha, sigma)
        return self.shares * normal(off, 0.0, total)

    def density(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Any:
        return self.parts(x, alpha, sigma).sum(-1)

    def log(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Any:
        return np.log(self.density(x, alpha, sigma))

    def score(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Array:
        """The derivative of the log-density, by a complex step."""
        return slope(lambda at: self.log(at, alpha, sigma), x)

    def closed_score(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Any:
        """The same in closed form, also at complex points."""
        off, total = self._off(x, alpha, sigma)
        parts = self.parts(x, alpha, sigma)
        return (parts * -off / total).sum(-1) / parts.sum(-1)

    def bend(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Any:
        """The second derivative of the density."""
        off, total = self._off(x, alpha, sigma)
        return (self.parts(x, alpha, sigma) * ((off / total) ** 2 - 1 / total)).sum(-1)

    def _off(self, x: Any, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        total = np.asarray(alpha**2 * self.variance + sigma**2)[..., None]
        return np.asarray(x)[..., None] - np.multiply.outer(alpha, self.means), total
