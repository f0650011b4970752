"""Formulas where diffusers' own differ from the papers'; every one is named by the class that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt

import numpy as np

from ...schedule import Time
from ...solvers import Linear, Trace
from ...solvers.karras import euler_step
from .tables import numpy_float


def inversion(p: Trace, t: Time, s: Time) -> Linear:
    """DDIM towards noise: x_s = alpha_s x0 + sigma_s eps, the output read at the point the step comes from."""
    x0, eps, _ = p.predict(p.start, t)
    return s.alpha * x0 + s.sigma * eps


def ddpm(p: Trace, t: Time, s: Time, *, variance_type: str, draws: bool) -> Linear:
    """Ho et al. 2020, eq. 6 and 7, with diffusers' variances: beta-tilde held above 1e-20, and noise wherever the timestep
    is above 0, the step into clean data included.

    The coefficients are rounded as diffusers rounds them: its 1 - alpha_bar_t/alpha_bar_s keeps few digits near t = 0, and
    exact coefficients would differ by more than a step's tolerance there.
    """
    x0, _, _ = p.predict(p.start, t)
    to_x0, to_x, beta, small = posterior(t.alpha**2, s.alpha**2)
    x = to_x0 * x0 + to_x * p.x()
    if not draws:
        return x
    if variance_type in ("fixed_small", "fixed_small_log"):
        return x + sqrt(small) * p.noise()
    if variance_type in ("fixed_large", "fixed_large_log"):
        return x + sqrt(beta) * p.noise()
    if variance_type == "learned":
        return x + p.noise()  # the caller's noise comes multiplied by the network's deviation
    return x + p.noise(log_variance=(log(small), log(beta)))


def posterior(alpha_bar_t: float, alpha_bar_s: float) -> tuple[float, float, float, float]:
    """(coefficient of x0, of x_t, beta, beta-tilde) of q(x_s | x_t, x0), in the precision of diffusers' tables."""
    rounded = numpy_float()
    a_t, a_s, one = rounded(alpha_bar_t), rounded(alpha_bar_s), rounded(1)
    kept = a_t / a_s
    beta, sigma_t, sigma_s = one - kept, one - a_t, one - a_s
    small = max(float(sigma_s / sigma_t * beta), 1e-20)
    return float(np.sqrt(a_s) * beta / sigma_t), float(np.sqrt(kept) * sigma_s / sigma_t), float(beta), small


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
