"""PNDM and iPNDM as diffusers computes them (Liu et al. 2022; Zhang & Chen 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....schedule import Time
from ....solvers import Linear, Trace
from ....solvers.adams import adams_bashforth
from ..tables import numpy_float


class Transfer:
    """DDIM's transfer x_s = on_x·x + on_out·m for a combination m of raw outputs.

    The combination is converted at t by the prediction type. This is Liu et al. 2022, eq. 11, in
    the form and precision of diffusers.
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
        """Returns the x that was transferred to x_s with this output."""
        return (x_s - self.on_out * out) / self.on_x


def plms(
    p: Trace, visits: Sequence[Time], steps: Sequence[tuple[Time, Time]], outs: list[Linear]
) -> Linear:
    """Linear multistep on raw outputs (Liu et al. 2022, eq. 12).

    Where `outs` is empty the first step is taken twice (S-PNDM's start): the second call is made at
    the end of the first step, and its step begins where the first one did, with the mean of both
    outputs. That second output is not remembered.

    Args:
        visits: the point of every network call.
        steps: (from, to) of every call's transfer.
        outs: outputs of earlier calls, latest first.
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
    """Pseudo Runge-Kutta (Liu et al. 2022, eq. 9 and 13), four calls per step.

    The state at its end is left in p.start. The state at a step's start is not remembered but
    recovered from the transferred state, because the slots are needed for the multistep's outputs.

    Args:
        visits: the point of every network call.
        base, goals: the points where every call's step begins and ends.

    Returns:
        The outputs that the multistep continues from, latest first.
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
    """Adams-Bashforth on eps with DDIM's transfer.

    Quirk: x0 is divided by an alpha of at least 1e-8, because alpha is 0 at the first point.
    """
    x = p.start
    past: list[Linear] = []
    for t, s in zip(times, times[1:], strict=False):
        _, eps, _ = p.predict(x, t)
        mixed = adams_bashforth([eps, *past])
        x = (s.alpha / max(t.alpha, 1e-8)) * (p.x() - t.sigma * mixed) + s.sigma * mixed
        past = [p.keep(eps), *past][:3]
    return x
