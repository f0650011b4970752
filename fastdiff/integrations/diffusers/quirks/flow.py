"""Formulas of diffusers' flow-matching schedulers, on the raw output u = dx/dsigma.

They use the output instead of x0, because an inverted grid begins at sigma = 0, where no slope
follows from x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

from ....schedule import Time
from ....solvers import Linear, Trace


def euler(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x + (sigma_s - sigma_t) u (Lipman et al. 2023, eq. 20)."""
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        u = p.predict(x, t).out
        x = p.x() + (s.sigma - t.sigma) * u
    return x


def denoised(p: Trace, times: Sequence[Time]) -> Linear:
    """x0 = x - sigma_t u after every call.

    These are the steps of consistency sampling without the noise that follows.
    """
    x = p.start
    for t in times[:-1]:
        u = p.predict(x, t).out
        x = p.x() - t.sigma * u
    return x


def renoised(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = (1 - sigma_s) x0 + sigma_s z (Song et al. 2023, algorithm 1)."""
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        u = p.predict(x, t).out
        x = s.alpha * (p.x() - t.sigma * u)
        if s.sigma > 0:
            x = x + s.sigma * p.noise()
    return x


def heun(
    p: Trace,
    times: Sequence[Time],
    spread: int,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Linear:
    """x_s = x + (sigma_s - sigma_up)(u_t sigma_t/sigma_up + u_s)/2, in pairs of calls.

    Quirk: the churn, from sigma_t to sigma_up, comes after the first call.

    Args:
        times: one for each call, and the last point.
        spread: the number of calls of the whole grid, over which s_churn is spread.
    """
    x = p.start
    for i in range(0, len(times) - 1, 2):
        t, s = times[i], times[i + 1]
        gamma = min(s_churn / spread, sqrt(2.0) - 1.0) if s_tmin <= t.sigma <= s_tmax else 0.0
        up = t.sigma * (1.0 + gamma)
        slope = p.predict(x, t).out * (t.sigma / up)
        begun = p.x()
        if gamma > 0:
            begun = begun + sqrt(up**2 - t.sigma**2) * s_noise * p.noise()
        width = s.sigma - up
        x = begun + width * slope
        if i + 2 < len(times):
            halfway = p.keep(begun + 0.5 * width * slope)
            x = halfway + 0.5 * width * p.predict(x, s).out
    return x
