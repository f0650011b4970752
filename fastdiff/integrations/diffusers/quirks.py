"""Formulas where diffusers' own differ from the papers'; every one is named by the class that uses
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, sqrt

import numpy as np

from ...schedule import Time
from ...solvers import Linear, Trace
from ...solvers.adams import adams_bashforth, lagrange_integrals
from ...solvers.karras import euler_step, slope
from .tables import numpy_float


def inversion(p: Trace, t: Time, s: Time) -> Linear:
    """DDIM towards noise: x_s = alpha_s x0 + sigma_s eps, the output read at the point the step
    comes from.
    """
    x0, eps, _ = p.predict(p.start, t)
    return s.alpha * x0 + s.sigma * eps


def ddpm(p: Trace, t: Time, s: Time, *, variance_type: str, draws: bool) -> Linear:
    """Ho et al. 2020, eq. 6 and 7, with diffusers' variances: beta-tilde held above 1e-20, and
    noise wherever the timestep is above 0, the step into clean data included.

    The coefficients are rounded as diffusers rounds them: its 1 - alpha_bar_t/alpha_bar_s keeps few
        digits near t = 0, and
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
    """(coefficient of x0, of x_t, beta, beta-tilde) of q(x_s | x_t, x0), in the precision of
    diffusers' tables.
    """
    rounded = numpy_float()
    a_t, a_s, one = rounded(alpha_bar_t), rounded(alpha_bar_s), rounded(1)
    kept = a_t / a_s
    beta, sigma_t, sigma_s = one - kept, one - a_t, one - a_s
    small = max(float(sigma_s / sigma_t * beta), 1e-20)
    return (
        float(np.sqrt(a_s) * beta / sigma_t),
        float(np.sqrt(kept) * sigma_s / sigma_t),
        float(beta),
        small,
    )


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
    """Karras et al. 2022, algorithm 2 without its second-order part, the churn after the network's
    call.

    steps: of the whole grid, which s_churn is spread over; hat: the output is read at the churned
        level, else at the one
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


def lms(p: Trace, times: Sequence[Time], start: int, *, order: int) -> Linear:
    """LMS as `solvers.adams.lms`, from index `start` of a grid.

    A run that begins inside the grid is given the weights of the full order, made for derivatives
    that it does not have; those that it lacks are left out.
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


class Transfer:
    """DDIM's transfer x_s = on_x·x + on_out·m of a combination m of raw outputs, read at t in the
    prediction type.

    Liu et al. 2022, eq. 11, in its own form and diffusers' precision.
    """

    def __init__(self, p: Trace, t: Time, s: Time):
        c = p.parametrization.at(t.alpha, t.sigma)
        rounded = numpy_float()
        a_t, a_s, one = rounded(t.alpha**2), rounded(s.alpha**2), rounded(1)
        on_x = float(np.sqrt(a_s / a_t))
        on_eps = -float((a_s - a_t) / (a_t * np.sqrt(one - a_s) + np.sqrt(a_t * (one - a_t) * a_s)))
        self.on_x, self.on_out = on_x + on_eps * c.eps_x, on_eps * c.eps_out

    def __call__(self, x: Linear, out: Linear) -> Linear:
        return self.on_x * x + self.on_out * out

    def back(self, x_s: Linear, out: Linear) -> Linear:
        """The x that was transferred to x_s with this output."""
        return (x_s - self.on_out * out) / self.on_x


def plms(
    p: Trace, visits: Sequence[Time], steps: Sequence[tuple[Time, Time]], outs: list[Linear]
) -> Linear:
    """Linear multistep on raw outputs, the first step taken twice where `outs` is empty (S-PNDM's
    start).

    visits: where the network is called; steps: (from, to) of each call's transfer. The second call
        comes at the first's
    end; its step starts where the first did, with the mean of both outputs, and it is not
    remembered.
    """
    x, fresh, start = p.start, not outs, Linear({})
    for i, (visit, (t, s)) in enumerate(zip(visits, steps, strict=True)):
        _, _, out = p.predict(x, visit)
        if fresh and i == 1:
            x = Transfer(p, t, s)(start, 0.5 * (out + outs[0]))
            continue
        x = Transfer(p, t, s)(p.x(), adams_bashforth([out, *outs]))
        if fresh and i == 0:
            start = p.keep(p.x())
        outs = [p.keep(out), *outs][:3]
    return x


def prk(
    p: Trace, visits: Sequence[Time], base: Sequence[Time], goals: Sequence[Time]
) -> list[Linear]:
    """Pseudo Runge-Kutta (Liu et al. 2022, eq. 9 and 13): four calls a step. Leaves the state in
    p.start; gives the outputs.

    visits: where the network is called; base: where each call's step starts; goals: where it goes.
        The step's start is
    not remembered: the transferred state gives it back, which leaves room for the outputs that the
        multistep needs.
    """
    outs: list[Linear] = []
    x = p.start
    first = second = whole = Linear({})
    last: Transfer | None = None
    for i, (visit, t, s) in enumerate(zip(visits, base, goals, strict=True)):
        _, _, out = p.predict(x, visit)
        move, stage = Transfer(p, t, s), i % 4
        if stage == 0:
            x = move(p.x(), out)
            first = p.keep(out)
            outs = [first, *outs][:3]
        elif stage == 1:
            assert last is not None
            start = last.back(p.x(), first)
            x, second = move(start, out), p.keep(out)
        elif stage == 2:
            assert last is not None
            start = last.back(p.x(), second)
            x = move(start, out)
            finish = Transfer(p, t, goals[i + 1]) if i + 1 < len(goals) else move
            whole = p.keep(finish(start, (first + 2.0 * second + 2.0 * out) / 6.0))
        else:
            x = whole + (move.on_out / 6.0) * out
        last = move
    p.start = x
    return outs


def ipndm(p: Trace, times: Sequence[Time]) -> Linear:
    """Adams-Bashforth on eps with DDIM's transfer, x0 divided by alpha held above 1e-8: alpha is 0
    at the first point.
    """
    x = p.start
    past: list[Linear] = []
    for t, s in zip(times, times[1:], strict=False):
        _, eps, _ = p.predict(x, t)
        mixed = adams_bashforth([eps, *past])
        x = (s.alpha / max(t.alpha, 1e-8)) * (p.x() - t.sigma * mixed) + s.sigma * mixed
        past = [p.keep(eps), *past][:3]
    return x


def midpoints(
    p: Trace,
    times: Sequence[Time],
    middle: Sequence[float],
    down: Sequence[float],
    up: Sequence[float],
) -> Linear:
    """`solvers.karras.kdpm2_ancestral` with the levels of a table: diffusers' sqrt(sigma_s² - up²)
    has lost its digits.
    """
    x = p.start
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        if s.sigma == 0:
            return x0
        start, half = p.keep(p.x()), Time(t.t, 1.0, middle[i], -2.0 * log(middle[i]))
        y0, _, _ = p.predict(euler_step(t, half, p.x(), x0), half)
        x = start + (down[i] - t.sigma) * slope(half, p.x(), y0) + up[i] * p.noise()
    return x
