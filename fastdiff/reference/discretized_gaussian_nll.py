"""The discretised Gaussian's NLL in NumPy, in float64 (kernels/README.md section 10)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def discretized_gaussian_nll(x0: NDArray, mean: NDArray, log_scale: NDArray) -> NDArray[np.float64]:
    """Computes -log of the Gaussian's mass on each bin, summed: [B] in nats.

    (Ho et al. 2020, eq. 13.) x0 in [-1, 1] is level k = round(127.5 (x0 + 1)) of 256; bins end at
    k ± ½, the first and the last at ±infinity.
    """
    shape = np.broadcast_shapes(x0.shape, mean.shape, log_scale.shape)
    x, m, s = (np.broadcast_to(v.astype(np.float64), shape) for v in (x0, mean, log_scale))
    return bins(x, m, s).sum(axis=tuple(range(1, len(shape))))


def bins(x: NDArray, mean: NDArray, log_scale: NDArray) -> NDArray[np.float64]:
    """Returns the terms of the sum."""
    level = np.clip(np.rint(127.5 * (x + 1)), 0, 255)
    center = (2 * level - 255) / 255 - mean
    inverse = np.exp(-log_scale)
    low, high = (center - 1 / 255) * inverse, (center + 1 / 255) * inverse
    first, last = level == 0, level == 255
    # by symmetry the bin is [a, b] with a + b >= 0
    flip = first | (~last & (center < 0))
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)
    b = np.where(first | last, np.inf, b)
    with np.errstate(all="ignore"):
        return _minus_log_mass(a, b)


def _minus_log_mass(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Returns -log ∫_a^b of the standard normal density, a + b >= 0."""
    # narrow: quadrature of exp((a² - t²)/2), whose exponent stays moderate
    width = b - a
    narrow = width * (np.abs(a) + width + 1) < 8
    t = a[..., None] + (0.5 * width)[..., None] * (_NODES + 1)
    inner = ((a[..., None] - t) * (a[..., None] + t)) * 0.5
    integral = 0.5 * width * (np.exp(inner) * _WEIGHTS).sum(-1)
    quadrature = 0.5 * a * a + 0.5 * math.log(2 * math.pi) - np.log(integral)
    # wide and in the tail: the far edge's share is small
    tail = _minus_log_tail(np.maximum(a, 0.0))
    share = np.exp(np.where(b < np.inf, tail - _minus_log_tail(np.maximum(b, 0.0)), -np.inf))
    wide = tail - np.log1p(-share)
    # wide and around the middle: what is missing is small
    missing = np.exp(-_minus_log_tail(np.abs(np.minimum(a, 0.0)))) + np.exp(
        -_minus_log_tail(np.maximum(b, 0.0))
    )
    middle = -np.log1p(-missing)
    return np.where(
        np.isnan(a), np.nan, np.where(narrow, quadrature, np.where(a >= 0, wide, middle))
    )


def _minus_log_tail(t: NDArray) -> NDArray[np.float64]:
    """Returns -log Q(t), Q the normal's upper tail, t >= 0.

    By erfc, and for large t by Laplace's continued fraction.
    """
    near = -np.log(0.5 * _erfc(np.where(t < 20, t, 0.0) / math.sqrt(2)))
    fraction = np.maximum(t, 20.0)
    u = fraction
    for k in range(60, 0, -1):
        u = fraction + k / u
    far = 0.5 * t * t + 0.5 * math.log(2 * math.pi) + np.log(u)
    return np.where(np.isnan(t), np.nan, np.where(t < 20, near, far))
