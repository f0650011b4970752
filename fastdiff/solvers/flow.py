"""Flow matching: Euler and Heun on the velocity u = eps - x0 (Lipman et al. 2023, eq. 20).

With alpha + sigma = 1 the flow is dx/dsigma = u (Esser et al. 2024). Dividing a state of another
space by alpha + sigma gives a state of this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from .grids import Time
from .karras import euler_step, slope, trapezoid
from .registry import Peer, solver
from .trace import Linear, Trace


def velocity(t: Time, x: Linear, x0: Linear) -> Linear:
    """Returns u = eps - x0."""
    return slope(t, x, x0) - x0


def _width(t: Time, s: Time) -> float:
    """Returns (alpha_s + sigma_s) times the step in sigma/(alpha + sigma)."""
    return s.sigma - (s.alpha + s.sigma) * t.sigma / (t.alpha + t.sigma)


@solver(
    "flow_euler",
    paper="Lipman et al. 2023, eq. 20; Esser et al. 2024, section 5",
    order=1,
    peer=Peer("FlowMatchEulerDiscrete", betas=False, space="flow", prediction_type="flow"),
)
def flow_euler(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x + (sigma_s - sigma_t) u, which is Euler's step in every space."""
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        x = euler_step(t, s, p.x(), x0)
    return x


@solver(
    "flow_heun",
    paper="Lipman et al. 2023, eq. 20, with Heun's method",
    order=2,
    calls=2,
    arrays=4,
    peer=Peer("FlowMatchHeunDiscrete", betas=False, space="flow", prediction_type="flow"),
)
def flow_heun(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x + (sigma_s - sigma_t)(u_t + u_s)/2, with u_s at the end of Euler's step.

    The step into clean data is Euler's.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        x = euler_step(t, s, p.x(), x0)
        if s.sigma > 0:
            x = trapezoid(p, s, x, velocity(t, p.x(), x0), velocity, _width(t, s))
    return x
