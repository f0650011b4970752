"""What exponential integrators share: steps exact for a constant prediction, and divided
differences of predictions.

With lambda = ln(alpha/sigma) and h = lambda_s - lambda_t a step from t to s is, for the data
prediction x0 (Lu et al. 2022b, eq. 9),

    x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) x0 + terms in differences of x0

and for eps (Lu et al. 2022a, eq. 3.7) x_s = (alpha_s/alpha_t) x_t - sigma_s (e^h - 1) eps + …; both
first-order forms are DDIM's. Clean data lie at h = infinity: only the first-order step goes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, inf

from .grids import Time
from .trace import Linear, Trace


def step_size(t: Time, s: Time) -> float:
    """h = lambda_s - lambda_t > 0."""
    return s.half_log_snr - t.half_log_snr


def first_order(p: Trace, t: Time, s: Time, x0: Linear, x: Linear | None = None) -> Linear:
    """x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) x0, finite at clean data."""
    start = p.x() if x is None else x
    h = step_size(t, s)
    return (s.sigma / t.sigma) * start + (s.alpha * (1.0 if h == inf else -expm1(-h))) * x0


def history(
    times: Sequence[Time], i: int, available: int, order: int, falling: bool = False
) -> tuple[float, int]:
    """(h, the order that step i of the grid allows): what is remembered, and first order into clean
    data; `falling`: no more than the steps that are left, which is steadier with few of them.
    """
    h = step_size(times[i], times[i + 1])
    return h, 1 if h == inf else min(order, available + 1, len(times) - 1 - i if falling else order)


def differences(
    now: Linear,
    past: Sequence[tuple[Linear, float]],
    lam: float,
    h: float,
    order: int,
    as_published: bool,
) -> tuple[Linear, Linear | None]:
    """(D1, D2): h times the first and h² times the second derivative of the prediction at lambda
    (D2 for order 3).

    past: earlier predictions with their lambdas, latest first (Lu et al. 2022b, algorithm 2 and
        appendix). The second
    divided difference is half the second derivative. The published code, and what was copied from
    it, takes it for the whole, and is of second order only; `as_published` does so too.
    """
    r0 = (lam - past[0][1]) / h
    d10 = (now - past[0][0]) / r0
    if order < 3:
        return d10, None
    r1 = (past[0][1] - past[1][1]) / h
    d11 = (past[0][0] - past[1][0]) / r1
    half = (d10 - d11) / (r0 + r1)
    return d10 + (r0 / (r0 + r1)) * (d10 - d11), half if as_published else 2.0 * half
