"""DPM-Solver's four algorithms with the orders of their steps given from outside, as diffusers
chooses them.

With h = lambda_s - lambda_t, e = h for ODEs and 2h for SDEs, and divided differences D1, D2 of the
predictions D0, a step of any of them is

    x_s = c_x x_t + c (g D0 + psi D1 + chi D2) + c_z z

for the data prediction (Lu et al. 2022b, section 4 and appendix) with g = 1 - e^-e, c = alpha_s,
c_x = sigma_s/sigma_t·e^(h - e), c_z = sigma_s sqrt(1 - e^-2h); for the noise prediction (Lu et al.
2022a, eq. 3.7) with g = e^h - 1, c = -sigma_s e/h, c_x = alpha_s/alpha_t, c_z = sigma_s sqrt(e^2h -
1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, expm1, inf, sqrt
from typing import Any, NamedTuple

from ...schedule import Time
from ...solvers import Linear, Trace
from ...solvers.exponential import differences, step_size

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
SOLVER_TYPES = ("midpoint", "heun")


def orders(config: Mapping[str, Any], steps: int) -> list[int]:
    """The order of every step of a grid: lower where the configuration wants the end steady."""
    highest = [config["solver_order"]] * steps
    if config["lower_order_final"] and steps < 15:
        highest[-2:] = [min(config["solver_order"], 2), 1][-steps:]
    if config["euler_at_final"]:
        highest[-1] = 1
    return highest


class Weights(NamedTuple):
    """A step's weights of x_t, D0, D1, D2 and the noise."""

    x: float
    d0: float
    d1: float
    d2: float
    z: float


def weights(algorithm: str, t: Time, s: Time, midpoint: bool) -> Weights:
    """The weights of a step from t to s; midpoint: D1's of order 2 is g/2, which takes D0 + D1/2
    for the mean.
    """
    sde, data = algorithm.startswith("sde"), algorithm.endswith("++")
    h = step_size(t, s)
    if h == 0:  # equal levels: nothing moves
        return Weights(1.0, 0.0, 0.0, 0.0, 0.0)
    e = 2.0 * h if sde else h
    if data:
        x = s.sigma / t.sigma * (exp(-h) if sde else 1.0)
        if h == inf:
            return Weights(x, s.alpha, 0.0, 0.0, 0.0)
        gain, scale = -expm1(-e), s.alpha
        psi, chi = 1.0 - gain / e, (gain - e) / e**2 + (-0.5 if sde else 0.5)
        z = (
            s.sigma * sqrt(max(-expm1(-2.0 * h), 0.0)) if sde else 0.0
        )  # a last level may lie a rounding above
    else:
        x, gain, scale = s.alpha / t.alpha, expm1(h), -s.sigma * (2.0 if sde else 1.0)
        psi, chi = gain / h - 1.0, (gain - h) / h**2 - 0.5
        z = s.sigma * sqrt(max(expm1(2.0 * h), 0.0)) if sde else 0.0
    return Weights(x, scale * gain, scale * (0.5 * gain if midpoint else psi), scale * chi, z)


def predicted(p: Trace, x: Linear, t: Time, algorithm: str) -> Linear:
    """What the algorithm integrates: x0, or eps."""
    return p.predict(x, t).x0 if algorithm.endswith("++") else p.predict_eps(x, t)[1]


def multistep(
    p: Trace, times: Sequence[Time], orders: Sequence[int], *, algorithm: str, solver_type: str
) -> Linear:
    """orders: of each step, held to what is remembered. Equal levels in the grid, whose step is
    nothing and whose differences are infinite, are left out of the history.
    """
    x, past = p.start, []  # type: ignore[var-annotated]  # predictions with their lambdas, latest first
    for (t, s), order in zip(zip(times, times[1:], strict=False), orders, strict=True):
        d0 = predicted(p, x, t, algorithm)
        known = [q for q in past if q[1] != t.half_log_snr]
        k = min(order, len(known) + 1)
        w = weights(algorithm, t, s, k == 2 and solver_type == "midpoint")
        x = w.x * p.x() + w.d0 * d0
        if k > 1 and w.d1:
            d1, d2 = differences(d0, known, t.half_log_snr, step_size(t, s), k, as_published=True)
            x = x + w.d1 * d1
            if d2 is not None:
                x = x + w.d2 * d2
        if w.z:
            x = x + w.z * p.noise()
        past = [(p.keep(d0), t.half_log_snr), *known][:2]
    return x


def singlestep(
    p: Trace, times: Sequence[Time], orders: Sequence[int], *, algorithm: str, solver_type: str
) -> Linear:
    """Groups of steps of order 1, 2, …: each goes from the state where its group began (Lu et al.
    2022b, algorithm 1), and the later ones replace what those before them reached. A run that
    begins inside a group begins one.
    """
    x, base = p.start, p.start
    group: list[tuple[Linear, Time]] = []  # predictions of the group, first first
    for (t, s), order in zip(zip(times, times[1:], strict=False), orders, strict=True):
        d0 = predicted(p, x, t, algorithm)
        if order == 1 or not group or any(q.log_snr == t.log_snr for _, q in group):
            group, base = (
                [],
                p.x(),
            )  # also where a point comes twice, between which there is no slope
        group = [*group, (d0, t)]
        first, begin = group[-min(order, len(group))]
        k = len(group)
        w = weights(algorithm, begin, s, k == 2 and solver_type == "midpoint")
        x = w.x * base + w.d0 * first
        h = step_size(begin, s)
        slopes = [(m - first) * (h / step_size(begin, q)) for m, q in group[1:]]
        if k == 2 or (k == 3 and solver_type == "midpoint"):
            x = x + w.d1 * slopes[-1]
        elif k == 3:
            r1, r0 = (step_size(begin, q) / h for _, q in group[1:])
            x = x + w.d1 * ((r0 * slopes[0] - r1 * slopes[1]) / (r0 - r1))
            x = x + w.d2 * (2.0 * (slopes[1] - slopes[0]) / (r0 - r1))
        if w.z:
            x = x + w.z * p.noise()
        if k == 1:
            base = p.keep(base)
        group[-1] = (p.keep(d0), t)
    return x
