"""Shared parts of exponential integrators: weights of steps and differences of predictions.

With lambda = ln(alpha/sigma) and h = lambda_s - lambda_t a step from t to s is, for the data
prediction x0 (Lu et al. 2022b, eq. 9),

    x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) x0 + terms in differences of x0

and for eps (Lu et al. 2022a, eq. 3.7) x_s = (alpha_s/alpha_t) x_t - sigma_s (e^h - 1) eps + …. Both
first-order forms are exact for a constant prediction and equal DDIM's step. At clean data h is
infinite, and only the first-order step is finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, expm1, inf, sqrt
from typing import NamedTuple

import numpy as np

from .grids import Time
from .trace import Linear, Trace


def step_size(t: Time, s: Time) -> float:
    """Returns h = lambda_s - lambda_t, above 0."""
    return s.half_log_snr - t.half_log_snr


def first_order(p: Trace, t: Time, s: Time, x0: Linear, x: Linear | None = None) -> Linear:
    """Returns x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) x0, finite at clean data.

    x: x_t; None for the state of the open row.
    """
    start = p.x() if x is None else x
    h = step_size(t, s)
    return (s.sigma / t.sigma) * start + (s.alpha * (1.0 if h == inf else -expm1(-h))) * x0


def step_order(
    times: Sequence[Time], i: int, available: int, order: int, falling: bool = False
) -> int:
    """Returns the order of step i of the grid.

    It is 1 for a step into clean data, and otherwise the highest that the history allows.

    Args:
        available: number of earlier predictions.
        order: the highest order.
        falling: no higher than the number of steps left, which is more stable with few steps.
    """
    if step_size(times[i], times[i + 1]) == inf:
        return 1
    return min(order, available + 1, len(times) - 1 - i if falling else order)


class Weights(NamedTuple):
    """The numbers of a step x_s = x·x_t + scale·(d0·D0 + d1·D1 + d2·D2) + z·noise.

    D0 is the prediction, D1 and D2 are its divided differences (`differences`).
    """

    x: float
    scale: float
    d0: float
    d1: float
    d2: float
    z: float


_UNMOVED = Weights(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # of a step between equal levels


def data_weights(
    t: Time,
    s: Time,
    *,
    midpoint: bool = False,
    eta: float = 0.0,
    s_noise: float = 1.0,
    curvature: float = 0.5,
) -> Weights:
    """Weights of a step that integrates x0 (Lu et al. 2022b, section 4 and appendix B).

    With e = (1 + eta) h they are: sigma_s/sigma_t e^(-eta h) for x_t; alpha_s times 1 - e^-e for
    D0, 1 - (1 - e^-e)/e for D1 and (1 - e^-e - e)/e² + 1/2 for D2; s_noise sigma_s
    sqrt(1 - e^(-2 eta h)) for the noise. Only D0 counts in a step into clean data, h = infinity.

    Args:
        midpoint: D1 gets half of D0's weight instead, the midpoint rule of order 2.
        eta: 0 for the probability-flow ODE, 1 for the reverse SDE.
        s_noise: factor of the noise.
        curvature: the constant in D2's weight, which is 1/2.
    """
    h = step_size(t, s)
    if h == 0:
        return _UNMOVED
    e = (1 + eta) * h
    x, gain = s.sigma / t.sigma, -expm1(-e)  # 1 - e^-e
    z = 0.0
    if eta:
        x = x * exp(-eta * h)
        z = s.sigma * s_noise * sqrt(max(-expm1(-2 * eta * h), 0.0))  # h may round to below 0
    if h == inf:
        return Weights(x, s.alpha, gain, 0.0, 0.0, z)
    d1 = 0.5 * gain if midpoint else 1.0 - gain / e
    return Weights(x, s.alpha, gain, d1, (gain - e) / e**2 + curvature, z)


def noise_weights(t: Time, s: Time, *, midpoint: bool = False, sde: bool = False) -> Weights:
    """Weights of a step that integrates eps (Lu et al. 2022a, eq. 3.7), s not being clean data.

    They are: alpha_s/alpha_t for x_t; -sigma_s, twice that for the SDE, times e^h - 1 for D0,
    (e^h - 1)/h - 1 for D1 and (e^h - 1 - h)/h² - 1/2 for D2; sigma_s sqrt(e^2h - 1) for the SDE's
    noise. midpoint: D1 gets half of D0's weight instead, the midpoint rule of order 2.
    """
    h = step_size(t, s)
    if h == 0:
        return _UNMOVED
    gain = expm1(h)  # e^h - 1
    d1 = 0.5 * gain if midpoint else gain / h - 1.0
    z = s.sigma * sqrt(max(expm1(2.0 * h), 0.0)) if sde else 0.0  # h may round to below 0
    scale = -s.sigma * (2.0 if sde else 1.0)
    return Weights(s.alpha / t.alpha, scale, gain, d1, (gain - h) / h**2 - 0.5, z)


def differences(
    now: Linear,
    past: Sequence[tuple[Linear, float]],
    lam: float,
    h: float,
    order: int,
    as_published: bool,
) -> tuple[Linear, Linear | None]:
    """Returns D1 and D2, h and h² times the first two derivatives of the prediction at lambda.

    See Lu et al. 2022b, algorithm 2 and appendix. D2 is None below order 3.

    Args:
        now: the prediction at lambda.
        past: earlier predictions with their lambdas, latest first.
        lam: lambda.
        h: step size.
        order: 2 or 3.
        as_published: D2 is half of that, as in the published code and its copies. They take the
            second divided difference, which is half the second derivative, for the derivative,
            and are of second order only.
    """
    r0 = (lam - past[0][1]) / h
    d10 = (now - past[0][0]) / r0
    if order < 3:
        return d10, None
    r1 = (past[0][1] - past[1][1]) / h
    d11 = (past[0][0] - past[1][0]) / r1
    half = (d10 - d11) / (r0 + r1)
    return d10 + (r0 / (r0 + r1)) * (d10 - d11), half if as_published else 2.0 * half


def lagrange_basis(nodes: Sequence[float]) -> list[np.polynomial.Polynomial]:
    """Returns the Lagrange basis polynomials: the j-th is 1 at node j and 0 at the others.

    Raises ValueError for two equal nodes, through which no polynomial goes.
    """
    if len(set(nodes)) < len(nodes):
        raise ValueError(
            "fastdiff.Sampler: expected different noise levels for a solver that interpolates"
            f" between them, got two equal ones among {[float(f'{node:.6g}') for node in nodes]}."
            " Leave one out, or take another solver."
        )
    polynomials = []
    for j, node in enumerate(nodes):
        basis = np.polynomial.Polynomial([1.0])
        for k, other in enumerate(nodes):
            if k != j:
                basis = basis * np.polynomial.Polynomial([-other, 1.0]) / (node - other)
        polynomials.append(basis)
    return polynomials
