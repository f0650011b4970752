"""DDPM and inverted DDIM as diffusers computes them."""

from __future__ import annotations

from math import log, sqrt

import numpy as np

from ....schedule import Time
from ....solvers import Linear, Trace
from ..tables import numpy_float


def inversion(p: Trace, t: Time, s: Time) -> Linear:
    """DDIM towards noise, x_s = alpha_s x0 + sigma_s eps.

    Quirk: the output is read as if it were predicted at t, the point where the step begins.
    """
    x0, eps, _ = p.predict(p.start, t)
    return s.alpha * x0 + s.sigma * eps


def ddpm(p: Trace, t: Time, s: Time, *, variance_type: str, draws: bool) -> Linear:
    """DDPM (Ho et al. 2020, eq. 6 and 7) with diffusers' variances.

    Quirks: beta-tilde is at least 1e-20, and noise is added wherever the timestep is above 0, also
    in the step into clean data. The coefficients are rounded as diffusers rounds them: its
    1 - alpha_bar_t/alpha_bar_s keeps few digits near t = 0, where exact coefficients would differ
    by more than a step's tolerance.

    Args:
        variance_type: as in diffusers.
        draws: whether the step adds noise.
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
        return x + p.noise()  # `noise` is already multiplied by the network's deviation
    return x + p.noise(log_variance=(log(small), log(beta)))


def posterior(alpha_bar_t: float, alpha_bar_s: float) -> tuple[float, float, float, float]:
    """Returns the coefficients of x0 and x_t, beta and beta-tilde of q(x_s | x_t, x0).

    They are computed in the precision of diffusers' tables.
    """
    rounded = numpy_float()
    a_t, a_s, one = rounded(alpha_bar_t), rounded(alpha_bar_s), rounded(1)
    ratio = a_t / a_s
    beta, sigma_t, sigma_s = one - ratio, one - a_t, one - a_s
    small = max(float(sigma_s / sigma_t * beta), 1e-20)
    return (
        float(np.sqrt(a_s) * beta / sigma_t),
        float(np.sqrt(ratio) * sigma_s / sigma_t),
        float(beta),
        small,
    )
