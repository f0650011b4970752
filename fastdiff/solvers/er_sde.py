"""ER-SDE: multistep solvers of extended reverse-time SDEs (Cui et al. 2023).

With rho = sigma/alpha, a function phi(rho) chooses the SDE among those with the model's marginals.
A step from t to s is exact (Cui et al. 2023, VP ER-SDE-Solvers), with r = phi(rho_s)/phi(rho_t):

    x_s = (alpha_s/alpha_t) r x_t + alpha_s ∫ x0(rho) d(-phi(rho_s)/phi(rho)) + alpha_s std z
    std² = rho_s² - rho_t² r²

where the integral is over [rho_s, rho_t] and a polynomial in rho through the latest predictions
stands for x0(rho). phi = rho is the probability flow, and rho² is the reverse SDE.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import exp, expm1, inf, log, sqrt
from typing import Annotated

import numpy as np

from .grids import Time
from .options import FINITE, Factor, Flag, Order3, either, optional
from .registry import Configuration, solver
from .trace import Linear, Trace

Phi = float | Callable[[float], float] | None
PhiOption = Annotated[
    Phi,
    either(optional(FINITE), callable, ">= 0 and finite, None, or a function of rho"),
]


@functools.cache
def _quadrature() -> list[tuple[float, float]]:
    """Returns nodes and weights of Gauss' quadrature over [-1, 1], for integrals over ln rho."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    return list(zip(nodes.tolist(), weights.tolist(), strict=True))


def _log_excess(phi: Phi, rho: float) -> float:
    """Returns ln(phi(rho)/rho), up to a constant of phi; at rho = inf its limit."""
    if callable(phi):
        return log(phi(rho) / rho) if rho < inf else inf
    if phi is None:
        # ln(e^(rho^0.3) + 10), where the exponential may overflow
        return rho**0.3 + log(1.0 + 10.0 * exp(-(rho**0.3))) if rho < inf else inf
    if rho == inf:
        return inf if phi else 0.0
    return phi**2 * log(rho)


def _log_ratio(phi: Phi, low: float, high: float) -> float:
    """Returns ln of (phi(low)/low)/(phi(high)/high), at most 0."""
    ratio = _log_excess(phi, low) - _log_excess(phi, high)
    if not ratio <= 1e-12:
        raise ValueError(
            "fastdiff.Sampler: expected phi with a phi(rho)/rho that does not fall with rho for the"
            f" solver 'er_sde', got one that falls between {low:.6g} and {high:.6g}."
        )
    return min(ratio, 0.0)


def _moments(phi: Phi, t: Time, s: Time) -> tuple[float, float]:
    """Returns the integrals of rho - rho_t and of its square, weighted as x0 in a step.

    By parts they are -∫ (1 - phi(rho_s)/phi(rho)) drho and -2 ∫ (rho - rho_t) (…) drho.
    """
    middle, half = 0.5 * (log(t.rho) + log(s.rho)), 0.5 * (log(t.rho) - log(s.rho))
    first = second = 0.0
    for node, weight in _quadrature():
        rho = exp(middle + half * node)
        gone = -expm1(log(s.rho / rho) + _log_ratio(phi, s.rho, rho)) if rho > s.rho else 0.0
        first -= half * weight * rho * gone
        second -= 2.0 * half * weight * rho * (rho - t.rho) * gone
    return first, second


@solver(
    "er_sde",
    paper="Cui et al. 2023 (ER-SDE), VP ER-SDE-Solver-1 to 3",
    order=2,
    stochastic=True,
    noiseless={"phi": 0.0},
    arrays=6,
    configurations=[
        Configuration(),
        Configuration({"as_published": True}),
        Configuration({"phi": 1.0, "order": 1}, order=1, tau=1.0),
        Configuration({"phi": 1.0, "order": 2}, order=2, tau=1.0),
        Configuration({"phi": 1.0}, order=2, tau=1.0),
        Configuration({"phi": 0.6, "order": 2}, order=2, tau=0.6),
        Configuration({"phi": 0.0, "order": 1}, order=1),
        Configuration({"phi": 0.0, "order": 2}, order=2),
        Configuration({"phi": 0.0, "as_published": True}, order=2),
        Configuration({"phi": 0.0}, order=3, exact_start=True),
    ],
)
def er_sde(
    p: Trace,
    times: Sequence[Time],
    *,
    order: Order3 = 3,
    phi: PhiOption = None,
    s_noise: Factor = 1.0,
    as_published: Flag = False,
) -> Linear:
    """Taylor's polynomial of x0 in rho from the latest predictions, integrated exactly.

    Args:
        order: number of predictions, 1 to 3; it rises over the first steps and is 1 into clean
            data.
        phi: None for rho (e^(rho^0.3) + 10), the paper's choice; a number tau for rho^(1 + tau²),
            the SDE with the constant noise tau, 0 for the probability flow and 1 for the reverse
            SDE; or a function of rho. With pure noise at the start the state is drawn anew, unless
            tau is 0.
        s_noise: factor of the noise.
        as_published: with order 3 the first derivative is the latest difference quotient, as in
            algorithm 3 of the paper, which makes the solver one of second order.
    """
    x = p.start
    past: list[tuple[Linear, float]] = []  # predictions with their rho, latest first
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        past = [q for q in past if q[1] != t.rho]  # equal points give no slope
        if s.rho == 0:
            x = s.alpha * x0
            continue
        excess = exp(_log_ratio(phi, s.rho, t.rho))
        r = s.rho / t.rho * excess
        x = (s.sigma / t.sigma * excess) * p.x() + s.alpha * (1.0 - r) * x0
        known = [(x0, t.rho), *past][: order if s.rho < t.rho < inf else 1]
        if len(known) > 1:
            first, second = _moments(phi, t, s)
            slope, curvature = _derivatives(known, as_published)
            x = x + s.alpha * (first * slope + second * curvature)
        if excess < 1.0 and s_noise > 0:
            x = x + s.sigma * s_noise * sqrt(1.0 - excess**2) * p.noise()
        if i < len(times) - 2 and t.rho < inf:
            past = [(p.keep(x0), t.rho), *past][: order - 1]
    return x


def _derivatives(
    known: Sequence[tuple[Linear, float]], as_published: bool
) -> tuple[Linear, Linear]:
    """Returns the first derivative in rho at the latest point, and half the second.

    They are those of the polynomial through the points, with as_published but for the first.
    """
    (a, at), (b, before) = known[:2]
    slope = (a - b) / (at - before)
    if len(known) == 2:
        return slope, Linear({})
    c, first = known[2]
    curvature = (slope - (b - c) / (before - first)) / (at - first)
    return slope if as_published else slope + (at - before) * curvature, curvature
