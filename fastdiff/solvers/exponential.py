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


def moments(z: float, count: int) -> list[float]:
    """Returns ∫_0^1 e^(-z v) v^j dv for j < count."""
    if z < 2.0:  # the recursion below cancels there; the series Σ (-z)^k/(k! (j + k + 1)) does not
        terms = [1.0]
        for k in range(1, 30):
            terms.append(-terms[-1] * z / k)
        return [sum(term / (j + k + 1) for k, term in enumerate(terms)) for j in range(count)]
    values = [-expm1(-z) / z]
    for j in range(1, count):
        values.append((j * values[-1] - exp(-z)) / z)
    return values


def phi(z: float) -> tuple[float, float]:
    """Returns phi_1(-z) = (1 - e^-z)/z and phi_2(-z) = (1 - phi_1(-z))/z, for z >= 0.

    Weights of exponential integrators are sums of these (Hochbruck & Ostermann 2010, eq. 2.10).
    """
    first, second = moments(z, 2)
    return first, first - second


class Stage(NamedTuple):
    """A stage of an exponential Runge-Kutta step: its point, and the weights of the changes of x0.

    Attributes:
        at: the point of the stage; the last stage is the end of the step.
        weights: of y_j - x0 for each stage j before, times alpha; y_j is the prediction there.
    """

    at: Time
    weights: Sequence[float]


def stages(
    p: Trace, t: Time, x0: Linear, steps: Sequence[Stage], *, eta: float = 0.0, s_noise: float = 1.0
) -> Linear:
    """Returns the state at the last stage of a step from t, on the SDE of noise sqrt(eta).

    With h = lambda_q - lambda_t, the state at a stage q is

        x_q = (sigma_q/sigma_t) e^(-eta h) x_t + alpha_q ((1 - e^(-(1 + eta) h)) x0
              + Σ_j w_j (y_j - x0)) + sigma_q n_q,    n_q ~ N(0, 1 - e^(-2 eta h))

    where n_q follows one path of noise from stage to stage. Each stage but the last is a network
    call. Only sums are remembered: after a call, every later stage's state so far.

    Args:
        x0: the prediction at t, in the open row.
        steps: the stages in the order of their points.
        eta: 0 for the probability-flow ODE, 1 for the reverse SDE. s_noise: factor of the noise.
    """
    sums = [_base(p, t, stage, x0, eta) for stage in steps]
    before = t
    for k, (at, _) in enumerate(steps):
        drawn = s_noise * _spread(eta, step_size(before, at)) if eta and at.sigma > 0 else 0.0
        if drawn > 0:
            z = p.noise()
            for i, stage in enumerate(steps[k:], k):
                share = stage.at.sigma * exp(-eta * step_size(at, stage.at))
                sums[i] = sums[i] + share * drawn * z
        if k == len(steps) - 1:
            break
        x, sums[k + 1 :] = sums[k], [p.keep(value) for value in sums[k + 1 :]]
        y0, _, _ = p.predict(x, at)
        for i, stage in enumerate(steps[k + 1 :], k + 1):
            sums[i] = sums[i] + stage.at.alpha * stage.weights[k] * y0
        before = at
    return sums[-1]


def _base(p: Trace, t: Time, stage: Stage, x0: Linear, eta: float) -> Linear:
    """Returns the part of a stage's state that x_t and x0 determine."""
    s, h = stage.at, step_size(t, stage.at)
    decay = exp(-eta * h) if eta else 1.0  # h may be infinite
    gain = -expm1(-(1.0 + eta) * h) - sum(stage.weights)
    return (s.sigma / t.sigma * decay) * p.x() + (s.alpha * gain) * x0


def _spread(eta: float, h: float) -> float:
    """Returns sqrt(1 - e^(-2 eta h)), the deviation of the noise of a step over its sigma."""
    return sqrt(max(-expm1(-2.0 * eta * h), 0.0))  # h may round to below 0
