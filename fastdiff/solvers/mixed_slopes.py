"""Solvers that step along a mixture of slopes: gradient estimation and Heun++.

They integrate dx/drho = eps, with x the state over alpha and rho = sigma/alpha. The step into clean
data and that from pure noise are Euler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from .grids import Time
from .karras import euler_step, slope
from .options import Number
from .registry import Configuration, solver
from .trace import Linear, Trace


@solver(
    "gradient_estimation",
    paper="Permenter & Yuan 2023, algorithm 2 (gradient estimation)",
    order=1,
    arrays=5,
    configurations=[Configuration(order=1), Configuration({"gamma": 1.0}, order=1)],
)
def gradient_estimation(p: Trace, times: Sequence[Time], *, gamma: Number = 2.0) -> Linear:
    """x_s = x_t + (rho_s - rho_t) (gamma eps + (1 - gamma) eps_before).

    With gamma > 1 the slope is extrapolated, as an estimate of the gradient of the distance to the
    data, which changes little along a trajectory.

    gamma: finite; 1 is Euler's method. The paper recommends 2.
    """
    x, before = p.start, None
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        d = slope(t, p.x(), x0)
        x = euler_step(t, s, p.x(), x0)
        if before is not None and s.rho > 0:
            x = x + (s.alpha * (s.rho - t.rho) * (gamma - 1.0)) * (d - before)
        if i < len(times) - 2 and t.rho < inf:
            before = p.keep(d)
    return x


@solver(
    "heunpp2",
    paper="no paper: Heun++ 2 of ComfyUI; Karras et al. 2022, algorithm 1, with weighted slopes",
    order=1,
    calls=3,
    total_calls=lambda steps: max(3 * steps - 3, 1),
    arrays=5,
)
def heunpp2(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x_t + (rho_s - rho_t) (w1 eps_t + w2 eps_s + w3 eps_u), with u the point after s.

    eps_s is at the end of Euler's step, eps_u at the end of another one from there. w2 =
    rho_s/(3 rho_0), w3 = rho_u/(3 rho_0) and w1 = 1 - w2 - w3, where rho_0 is the largest finite
    level. The last step but one is without u and has w2 = rho_s/(2 rho_0); the last is Euler's.
    """
    top = next((t.rho for t in times if t.rho < inf), inf)
    x = p.start
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        x = euler_step(t, s, p.x(), x0)
        later = times[i + 1 : i + 3] if i < len(times) - 3 else times[i + 1 : i + 2]
        if i == len(times) - 2 or t.rho == inf:
            continue
        weights = [v.rho / ((len(later) + 1) * top) for v in later]
        width = s.alpha * (s.rho - t.rho)
        total = (s.alpha / t.alpha) * p.x()
        total = total + (width * (1.0 - sum(weights))) * slope(t, p.x(), x0)
        for k, (at, weight) in enumerate(zip(later, weights, strict=True)):
            total = p.keep(total)
            y0, _, _ = p.predict(x, at)
            total = total + (width * weight) * slope(at, p.x(), y0)
            if k + 1 < len(later):
                x = euler_step(at, later[k + 1], p.x(), y0)
        x = total
    return x
