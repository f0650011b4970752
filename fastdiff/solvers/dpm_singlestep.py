"""Singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b).

A step takes two or three network calls, at t and at points that divide [t, s] evenly in lambda. The
step into clean data is of first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, inf

from .exponential import first_order, step_size
from .grids import Time
from .registry import Peer, solver
from .trace import Linear, Trace

# the same steps in diffusers
SINGLESTEP = "DPMSolverSinglestep"
EPSILON = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}


def data_prediction(p: Trace, times: Sequence[Time], order: int) -> Linear:
    """Integrates x0 (Lu et al. 2022b, algorithm 1 for order 2; two inner points for order 3)."""
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        h = step_size(t, s)
        if h == inf:
            x = first_order(p, t, s, x0)
            continue
        start, first = p.keep(p.x()), p.keep(x0)
        r = 1 / order
        middle = p.between(t, s, r)
        x = first_order(p, t, middle, x0)
        y0, _, _ = p.predict(x, middle)
        if order == 3:
            late = p.between(t, s, 2 * r)
            slope = (1.0 + expm1(-2 * r * h) / (2 * r * h)) * 2  # r2/r1 = 2
            x = first_order(p, t, late, first, start) + late.alpha * slope * (y0 - first)
            y0, _, _ = p.predict(x, late)
            slope = (1.0 + expm1(-h) / h) / (2 * r)
        else:
            slope = -expm1(-h) / (2 * r)
        x = first_order(p, t, s, first, start) + s.alpha * slope * (y0 - first)
    return x


def noise_prediction(p: Trace, times: Sequence[Time], order: int) -> Linear:
    """Integrates eps (Lu et al. 2022a, algorithm 1 for order 2 and algorithm 2 for order 3)."""
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps = p.predict_eps(x, t)
        h = step_size(t, s)
        if h == inf:
            x = s.alpha * x0 + s.sigma * eps
            continue
        start, first = p.keep(p.x()), p.keep(eps)
        r = 1 / order
        middle = p.between(t, s, r)
        x = middle.alpha * x0 + middle.sigma * eps
        _, e = p.predict_eps(x, middle)

        def base(
            to: Time, gain: float, t: Time = t, start: Linear = start, first: Linear = first
        ) -> Linear:
            return (to.alpha / t.alpha) * start - to.sigma * gain * first

        if order == 3:
            late, g = p.between(t, s, 2 * r), 2 * r * h
            x = base(late, expm1(g)) - late.sigma * 2 * (expm1(g) / g - 1.0) * (e - first)
            _, e = p.predict_eps(x, late)
            slope = (expm1(h) / h - 1.0) / (2 * r)
        else:
            slope = expm1(h) / (2 * r)
        x = base(s, expm1(h)) - s.sigma * slope * (e - first)
    return x


@solver(
    "dpm++2s",
    paper="Lu et al. 2022b (DPM-Solver++), algorithm 1",
    order=2,
    calls=2,
    arrays=4,
    peer=Peer(SINGLESTEP, {"solver_order": 2}, steps=25, theirs=49),
)
def dpmpp_2s(p: Trace, times: Sequence[Time]) -> Linear:
    return data_prediction(p, times, 2)


@solver(
    "dpm++3s",
    paper="Lu et al. 2022b (DPM-Solver++), singlestep of order 3",
    order=3,
    calls=3,
    arrays=5,
    peer=Peer(SINGLESTEP, {"solver_order": 3}, steps=17, theirs=49),
)
def dpmpp_3s(p: Trace, times: Sequence[Time]) -> Linear:
    return data_prediction(p, times, 3)


@solver(
    "dpm2s",
    paper="Lu et al. 2022a (DPM-Solver), algorithm 1",
    order=2,
    calls=2,
    arrays=4,
    peer=Peer(SINGLESTEP, {"solver_order": 2, **EPSILON}, steps=25, theirs=49),
)
def dpm_2s(p: Trace, times: Sequence[Time]) -> Linear:
    return noise_prediction(p, times, 2)


@solver(
    "dpm3s",
    paper="Lu et al. 2022a (DPM-Solver), algorithm 2",
    order=3,
    calls=3,
    arrays=5,
    peer=Peer(SINGLESTEP, {"solver_order": 3, **EPSILON}, steps=17, theirs=49),
)
def dpm_3s(p: Trace, times: Sequence[Time]) -> Linear:
    return noise_prediction(p, times, 3)
