"""k-diffusion's samplers as formulas over points (alpha, sigma) = (1, sigma).

Most are formulas of `fastdiff.solvers`; those that differ are defined here. `FORMULAS` lists every
sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, log, sqrt
from typing import Any, NamedTuple

from ...schedule import Time
from ...solvers import Linear, Trace, adams, dpm_multistep, dpm_sde, karras


def dpm_2(
    p: Trace, times: Sequence[Time], *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> Linear:
    """The midpoint rule in ln sigma of `solvers.karras.kdpm2`, with churn (Karras et al. 2022,
    algorithm 2).
    """
    x, gamma = p.start, min(s_churn / (len(times) - 1), sqrt(2.0) - 1.0)
    for t, s in zip(times, times[1:], strict=False):
        if gamma > 0 and s_tmin <= t.rho <= s_tmax:
            t, x = karras.churned(p, t, x, gamma, s_noise)
        x0, _, _ = p.predict(x, t)
        x = karras.euler_step(t, s, p.x(), x0) if s.log_snr == inf else _midpoint(p, t, s, x0)
    return x


def dpm_2_ancestral(p: Trace, times: Sequence[Time], *, eta: float, s_noise: float) -> Linear:
    """`solvers.karras.kdpm2_ancestral`, without noise in a step whose deterministic part ends at
    sigma = 0, as happens with a large eta.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        down, up = karras.ancestral_levels(t, s, eta)
        if down == 0:
            x = x0
            continue
        x = _midpoint(p, t, p.at_log_snr(-2.0 * log(down)), x0)
        if up * s_noise:
            x = x + up * s_noise * p.noise()
    return x


def _midpoint(p: Trace, t: Time, s: Time, x0: Linear) -> Linear:
    start, middle = p.keep(p.x()), p.between(t, s, 0.5)
    y0, _, _ = p.predict(karras.euler_step(t, middle, p.x(), x0), middle)
    return start + (s.sigma - t.sigma) * karras.slope(middle, p.x(), y0)


def _one(sigma: float, following: float, options: dict[str, Any]) -> int:
    return 1


def _two(sigma: float, following: float, options: dict[str, Any]) -> int:
    """Two calls, one in the step into clean data."""
    return 2 if following > 0 else 1


def _ancestral(sigma: float, following: float, options: dict[str, Any]) -> int:
    """Two calls, one where the deterministic part of the step ends at clean data."""
    if following == 0:
        return 1
    levels = [Time(v, 1.0, v, -2.0 * log(v)) for v in (sigma, following)]
    return 2 if karras.ancestral_levels(levels[0], levels[1], options["eta"])[0] > 0 else 1


class Formula(NamedTuple):
    """A sampler of k-diffusion."""

    trace: Callable[..., Linear]  # its formula
    calls: Callable[[float, float, dict[str, Any]], int]
    """The number of network calls of a step, from sigma, sigma_next and the options."""
    tree: bool = False  # whether its default noise is a Brownian path's
    slope_first: bool = False
    """Whether k-diffusion computes the slope (x - denoised)/sigma of a step before its callback, so
    that the slope does not change with what the callback writes."""


FORMULAS = {
    "euler": Formula(partial(karras.stochastic, heun=False), _one, slope_first=True),
    "heun": Formula(partial(karras.stochastic, heun=True), _two, slope_first=True),
    "dpm_2": Formula(dpm_2, _two, slope_first=True),
    "lms": Formula(adams.lms, _one, slope_first=True),
    "euler_ancestral": Formula(karras.euler_ancestral, _one),
    "dpm_2_ancestral": Formula(dpm_2_ancestral, _ancestral),
    "dpmpp_2s_ancestral": Formula(dpm_sde.dpmpp_2s_ancestral, _ancestral),
    "dpmpp_sde": Formula(dpm_sde.dpmpp_sde, _two, tree=True),
    "dpmpp_2m": Formula(partial(dpm_multistep.data_prediction, order=2), _one),
    "dpmpp_2m_sde": Formula(
        partial(dpm_multistep.data_prediction, order=2, sde=True), _one, tree=True
    ),
    "dpmpp_3m_sde": Formula(
        partial(
            dpm_multistep.data_prediction, order=3, sde=True, solver_type="heun", as_published=True
        ),
        _one,
        tree=True,
    ),
}
