"""Formulas where diffusers' own differ from the papers'; every one is named by the class that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt

from ...schedule import Time
from ...solvers import Linear, Trace
from ...solvers.karras import ancestral_levels, euler_step


def inversion(p: Trace, t: Time, s: Time) -> Linear:
    """DDIM towards noise: x_s = alpha_s x0 + sigma_s eps, the output read at the point the step comes from."""
    x0, eps, _ = p.predict(p.start, t)
    return s.alpha * x0 + s.sigma * eps


def ddpm(p: Trace, t: Time, s: Time, *, variance_type: str, draws: bool) -> Linear:
    """Ho et al. 2020, eq. 6 and 7, with diffusers' variances: beta-tilde held above 1e-20, and noise wherever the timestep
    is above 0, the step into clean data included."""
    x0, _, _ = p.predict(p.start, t)
    alpha_ts, variance_ts = t.transition(s)
    x = (s.alpha * variance_ts / t.sigma**2) * x0 + (alpha_ts * s.sigma**2 / t.sigma**2) * p.x()
    if not draws:
        return x
    small = max(variance_ts * (s.sigma / t.sigma) ** 2, 1e-20)
    if variance_type in ("fixed_small", "fixed_small_log"):
        return x + sqrt(small) * p.noise()
    if variance_type in ("fixed_large", "fixed_large_log"):
        return x + sqrt(variance_ts) * p.noise()
    if variance_type == "learned":
        return x + p.noise()  # the caller's noise comes multiplied by the network's deviation
    return x + p.noise(log_variance=(log(small), log(variance_ts)))


def late_churn(
    p: Trace, times: Sequence[Time], steps: int, *, hat: bool, s_churn: float = 0.0, s_tmin: float = 0.0,
    s_tmax: float = 0.0, s_noise: float = 1.0,
) -> Linear:  # fmt: skip
    """Karras et al. 2022, algorithm 2 without its second-order part, the churn after the network's call.

    steps: of the whole grid, which s_churn is spread over; hat: the output is read at the churned level, else at the one
    before.
    """
    x = p.start
    gamma = min(s_churn / steps, sqrt(2.0) - 1.0)
    for t, s in zip(times, times[1:], strict=False):
        up = t
        if gamma > 0 and s_tmin <= t.rho <= s_tmax:
            sigma = t.sigma * (1.0 + gamma)
            up = Time(t.t, 1.0, sigma, -2.0 * log(sigma))
            x = p.pause(x, t) + sqrt(sigma**2 - t.sigma**2) * s_noise * p.noise()
        x0, _, _ = p.predict(x, up if hat else t)
        x = euler_step(up, s, p.x(), x0)
    return x
