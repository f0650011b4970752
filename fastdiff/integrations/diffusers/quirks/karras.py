"""Euler with churn, Heun, LMS and the midpoint rule as diffusers computes them.

(Karras et al. 2022.)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, sqrt

from ....schedule import Time
from ....solvers import Linear, Trace
from ....solvers.adams import lagrange_integrals
from ....solvers.karras import euler_step, slope


def late_churn(
    p: Trace,
    times: Sequence[Time],
    steps: int,
    *,
    hat: bool,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Linear:
    """Karras et al. 2022, algorithm 2 without its second-order part.

    Quirk: the churn comes after the network's call.

    Args:
        steps: the number of steps of the whole grid, over which s_churn is spread.
        hat: whether the output is read at the churned level; otherwise at the level before.
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


def heun(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x_t + (sigma_s - sigma_t)(eps_t + eps_s)/2 (Karras et al. 2022, algorithm 1).

    Quirk: the second call continues from the x_t that the first one remembered, and reads the state
    that it is given only in eps_s; callers may have changed that state. `solvers.karras.heun` is
    the same while they do not, and continues from the given state.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        begun, first, half = p.x(), slope(t, p.x(), x0), 0.5 * (s.sigma - t.sigma)
        x = euler_step(t, s, begun, x0)
        if s.sigma > 0:
            halfway = p.keep(begun + half * first)
            _, eps = p.predict_eps(x, s)  # not (x - x0)/sigma, where a small sigma raises roundings
            x = halfway + half * eps
    return x


def lms(p: Trace, times: Sequence[Time], start: int, *, order: int) -> Linear:
    """LMS like `solvers.adams.lms`, from index `start` of a grid.

    Quirk: a run that begins inside the grid uses the weights of the full order from its first step.
    They are computed for derivatives that it does not have; the terms of those are left out.
    """
    x = p.start
    past: list[Linear] = []
    for i in range(start, len(times) - 1):
        t, s = times[i], times[i + 1]
        x0, _, _ = p.predict(x, t)
        d = slope(t, p.x(), x0)
        nodes = [times[i - k].rho for k in range(min(i + 1, order))]
        x = p.x()
        for weight, value in zip(lagrange_integrals(nodes, t.rho, s.rho), [d, *past], strict=False):
            x = x + weight * value
        past = [p.keep(d), *past][: order - 1]
    return x


def midpoint(p: Trace, t: Time, middle: float, down: float, up: float) -> Linear:
    """A step of `solvers.karras.kdpm2_ancestral`, with levels from a table.

    Quirk: diffusers' sqrt(sigma_s² - up²) cancels in float32, so the levels cannot be recomputed.

    Args:
        middle: the level of the second call; at 0 there is none.
        down, up: the level that the step goes down to, and that of the noise that is added back.
    """
    x0, _, _ = p.predict(p.start, t)
    if middle == 0:
        return x0
    start, half = p.keep(p.x()), Time(t.t, 1.0, middle, -2.0 * log(middle))
    _, eps = p.predict_eps(euler_step(t, half, p.x(), x0), half)  # as in `heun`
    x = start + (down - t.sigma) * eps
    return x + up * p.noise() if up != 0 else x
