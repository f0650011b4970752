"""`discretized_gaussian_nll` on torch: -log of the Gaussian's mass on each pixel's bin, summed.

By symmetry a bin is moved into the upper half of the normal. A narrow bin is integrated by a series
around its middle. A wide bin is a difference of Mills ratios in the tail, and one minus the
complement's mass around the middle. Nothing is clamped.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .common import store
from .elementary import exp, mills
from .sums import sum_samples

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_LOG_STEP = math.log(2 / 255)
_NARROW = {
    torch.float32: (3, 4, 0.25, 0.5),
    torch.float64: (5, 5, 1 / 32, 1 / 16),
}  # orders in h², y²; limits of w, y


class Bins(NamedTuple):
    """The terms and their derivatives, in the inputs' shape."""

    nll: Tensor
    by_mean: Tensor
    by_log_scale: Tensor


def discretized_gaussian_nll(
    nll: Tensor, workspace: Tensor | None, x0: Tensor, mean: Tensor, log_scale: Tensor
) -> None:
    nll.copy_(sum_samples(bins(*(v.to(nll.dtype) for v in (x0, mean, log_scale))).nll))


def discretized_gaussian_nll_backward(
    g_mean: Tensor | None,
    g_log_scale: Tensor | None,
    grad: Tensor,
    x0: Tensor,
    mean: Tensor,
    log_scale: Tensor,
) -> None:
    b = bins(*(v.to(grad.dtype) for v in (x0, mean, log_scale)))
    for to, value in ((g_mean, b.by_mean), (g_log_scale, b.by_log_scale)):
        if to is not None:
            store(to, grad[:, None] * value)


def bins(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Bins:
    k = (x0 + 1) * 127.5
    k = torch.where(k > 255, 255.0, k)
    k = torch.where(k < 0, 0.0, k).round()
    center, inverse = _level_minus(k * 2 - 255, mean), exp(-log_scale)
    first, last = k == 0, k == 255
    end = first | last
    flip = first | (~last & (center < 0))
    w = inverse * (2 / 255)
    h = w * 0.5
    center = torch.where(flip, -center, center)
    m = center * inverse
    a, b = (center - 1 / 255) * inverse, m + h
    y = m * h
    e = torch.where(end, -1.0, torch.expm1(y * -2))
    orders_k, orders_j, width, limit = _NARROW[m.dtype]
    narrow, tail = ~end & (w < width) & (y.abs() < limit), a >= 0

    s1 = _series(h * h, y * y, orders_k, orders_j)
    mills_a, mills_b = mills(a.abs()), mills(torch.where(b < 0, 0.0, b))
    wide = torch.where(end, mills_a, (mills_a - mills_b) - mills_b * e)
    fa, fb = _density(a), torch.where(end, 0.0, _density(b))
    q = mills_a * fa + mills_b * fb
    log_narrow = m * m * 0.5 + _HALF_LOG_2PI + (log_scale - _LOG_STEP) - torch.log1p(s1)
    log_tail = a * a * 0.5 + _HALF_LOG_2PI - torch.log(wide)
    nll = torch.where(narrow, log_narrow, torch.where(tail, log_tail, -torch.log1p(-q)))

    d = torch.where(narrow, w * (s1 + 1) * exp(h * h * 0.5 - y), wide)
    inside, outer = 1 - q, narrow | tail
    u = torch.where(outer, e / d, (fb - fa) / inside)
    v_outer = torch.where(end, -a / d, (a * e + w * (e + 1)) / d)
    v_inner = (torch.where(fb == 0, 0.0, b * fb) - torch.where(fa == 0, 0.0, a * fa)) / inside
    v = torch.where(outer, v_outer, v_inner)
    by_mean = torch.where(flip, -inverse, inverse) * u
    lost = m.isnan()
    return Bins(*(torch.where(lost, m, value) for value in (nll, by_mean, v)))


def _level_minus(u: Tensor, mean: Tensor) -> Tensor:
    """Returns u/255 - mean to full relative precision.

    high*255 is exact, so the quotient has twice the digits.
    """
    integers = torch.int64 if u.dtype == torch.float64 else torch.int32
    high = ((u / 255).view(integers) & ~0xFFF).view(u.dtype)
    return (high - mean) + (u - high * 255) * (1 / 255)


def _density(t: Tensor) -> Tensor:
    return exp(t * t * -0.5) * (1 / math.sqrt(2 * math.pi))


def _series(hh: Tensor, yy: Tensor, orders_k: int, orders_j: int) -> Tensor:
    """Returns Σ_k (-h²/2)^k/k! Σ_j y^2j/((2j)! (2k + 2j + 1)) - 1."""
    total = torch.zeros_like(hh)
    power = torch.ones_like(hh)
    for k in range(orders_k):
        inner = torch.zeros_like(yy)
        for j in range(orders_j - 1, -1 if k else 0, -1):
            inner = inner * yy + 1 / (math.factorial(2 * j) * (2 * k + 2 * j + 1))
        total = total + (power * inner if k else inner * yy)
        power = power * (hh * (-0.5 / (k + 1)))
    return total
