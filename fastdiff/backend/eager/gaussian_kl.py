"""`gaussian_kl` on torch, summed over a sample.

0.5 (e^d - 1 - d + (mean1 - mean2)² e^-logvar2),   d = logvar1 - logvar2
"""

from __future__ import annotations

import torch
from torch import Tensor

from .common import store
from .elementary import exp, exp_minus_1_minus
from .sums import sum_samples


def gaussian_kl(
    kl: Tensor,
    workspace: Tensor | None,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> None:
    d, m, inverse = _parts(kl.dtype, mean1, logvar1, mean2, logvar2)
    kl.copy_(sum_samples(kl_term(d, m, inverse)))


def gaussian_kl_backward(
    g_mean1: Tensor | None,
    g_logvar1: Tensor | None,
    g_mean2: Tensor | None,
    g_logvar2: Tensor | None,
    grad: Tensor,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> None:
    g = grad[:, None]
    by_mean, by_logvar1, by_logvar2 = kl_gradient(
        *_parts(grad.dtype, mean1, logvar1, mean2, logvar2)
    )
    for to, value in ((g_mean1, by_mean), (g_logvar1, by_logvar1), (g_logvar2, by_logvar2)):
        if to is not None:
            store(to, g * value)
    if g_mean2 is not None:
        store(g_mean2, -(g * by_mean))


def kl_term(d: Tensor, m: Tensor, inverse: Tensor | float) -> Tensor:
    return (exp_minus_1_minus(d) + (m * m) * inverse) * 0.5


def kl_gradient(d: Tensor, m: Tensor, inverse: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the derivatives by mean1, logvar1 and logvar2."""
    e = torch.expm1(d)
    return m * inverse, e * 0.5, (e + (m * m) * inverse) * -0.5


def _parts(
    compute: torch.dtype,
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None,
    logvar2: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Returns (d, mean difference, e^-logvar2), [B, n]."""
    m1, v1 = mean1.to(compute), logvar1.to(compute)
    if mean2 is None or logvar2 is None:
        return v1, m1, 1.0
    m2, v2 = mean2.to(compute), logvar2.to(compute)
    return v1 - v2, m1 - m2, exp(-v2)
