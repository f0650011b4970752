"""Exponential integrators for the data prediction x0: RES (Zhang et al. 2023), exponential Heun.

With lambda = ln(alpha/sigma) the probability flow of y = x/sigma is dy/dlambda = e^lambda x0. RES
fulfils all conditions of its order for this equation (Hochbruck & Ostermann 2005), which the same
number of calls with the weight (1 - e^-h)/(2r) of DPM-Solver++ does not. phi_1 and phi_2 below are
those of -h (`exponential.phi`). The step into clean data and that from pure noise, where h is
infinite, are of first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log

from .exponential import Stage, first_order, phi, stages, step_size
from .grids import Time
from .karras import ancestral_levels
from .options import Factor, Part, Strength
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

_HEUN = {"solver_order": 2, "solver_type": "heun", "lower_order_final": False}


def multistep(p: Trace, times: Sequence[Time], *, eta: float, s_noise: float) -> Linear:
    """Steps from rho_t down to rho_d with two predictions, then noise of deviation rho_u.

    In x/alpha, with h = ln(rho_t/rho_d) and the prediction y0 one point before, at lambda_u:
    e^-h x_t + (1 - e^-h) x0 + h² phi_2 (x0 - y0)/(lambda_t - lambda_u).
    """
    x = p.start
    past: tuple[Linear, float] | None = None  # the last prediction and its lambda
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        down, up = ancestral_levels(t, s, eta)
        if down == 0 or t.rho == inf or past is None or past[1] == t.half_log_snr:
            change = Linear({})
        else:
            h = log(t.rho / down)
            change = (h**2 * phi(h)[1] / (t.half_log_snr - past[1])) * (x0 - past[0])
        x = s.alpha * ((down / t.sigma) * p.x() + (1.0 - down / t.rho) * x0 + change)
        if up > 0 and s_noise > 0:
            x = x + s.alpha * up * s_noise * p.noise()
        if i < len(times) - 2 and t.rho < inf:
            past = p.keep(x0), t.half_log_snr
    return x


def two_stages(p: Trace, t: Time, s: Time, x0: Linear, c2: float) -> Linear:
    """Returns the step with the weight h phi_2/c2 of the prediction at c2 of the way in lambda."""
    h = step_size(t, s)
    if abs(h) == inf:
        return first_order(p, t, s, x0)
    middle = s if c2 == 1 else p.between(t, s, c2)
    return stages(p, t, x0, [Stage(middle, []), Stage(s, [h * phi(h)[1] / c2])])


@solver(
    "res_2m",
    paper="Zhang et al. 2023 (RES), multistep scheme of order 2",
    order=2,
    arrays=5,
    peer=Peer("DPMSolverMultistep", _HEUN),
)
def res_2m(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = e^-h … x_t + … x0 + alpha_s h² phi_2 (x0 - y0)/(lambda_t - lambda_u)."""
    return multistep(p, times, eta=0.0, s_noise=1.0)


@solver(
    "res_2m_ancestral",
    paper="Zhang et al. 2023 (RES), multistep scheme of order 2, with the noise of euler_ancestral",
    order=1,
    stochastic=True,
    noiseless={"eta": 0.0},
    arrays=5,
    configurations=[Configuration(order=1, tau=1.0), Configuration({"eta": 0.0}, order=2)],
)
def res_2m_ancestral(
    p: Trace, times: Sequence[Time], *, eta: Strength = 1.0, s_noise: Factor = 1.0
) -> Linear:
    """A step of res_2m from rho_t down to rho_d, then noise of deviation rho_u.

    eta: factor of the noise; 0 is res_2m. s_noise: another factor, of the noise alone.
    """
    return multistep(p, times, eta=eta, s_noise=s_noise)


@solver(
    "res_2s",
    paper="Zhang et al. 2023 (RES), single step of order 2; Hochbruck & Ostermann 2005, 2 stages",
    order=2,
    calls=2,
    arrays=4,
    configurations=[Configuration(order=2), Configuration({"c2": 1 / 3}, order=2)],
)
def res_2s(p: Trace, times: Sequence[Time], *, c2: Part = 0.5) -> Linear:
    """The prediction at c2 of the way in lambda counts h phi_2/c2, that at t the rest.

    c2: in (0, 1]; 1 is exp_heun.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        x = two_stages(p, t, s, x0, c2)
    return x


@solver(
    "exp_heun",
    paper="Hochbruck & Ostermann 2005, exponential Heun's method, on x0 (Zhang et al. 2023)",
    order=2,
    calls=2,
    arrays=4,
)
def exp_heun(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = (sigma_s/sigma_t) x_t + alpha_s h ((phi_1 - phi_2) x0 + phi_2 y0).

    y0 is the prediction at the end of DDIM's step.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        x = two_stages(p, t, s, x0, 1.0)
    return x


@solver(
    "res_3s",
    paper="Zhang et al. 2023 (RES), single step of order 3; Hochbruck & Ostermann 2005, 3 stages",
    order=3,
    calls=3,
    arrays=6,
    configurations=[
        Configuration(order=3),
        Configuration({"c2": 1 / 3, "c3": 0.75}, order=3),
    ],
)
def res_3s(p: Trace, times: Sequence[Time], *, c2: Part = 0.5, c3: Part = 1.0) -> Linear:
    """Predictions y2 and y3 at c2 and c3 of the way in lambda count gamma b and b.

    b = h phi_2/(gamma c2 + c3) with 2 (gamma c2 + c3) = 3 (gamma c2² + c3²), and y2 counts
    gamma c2 h phi_2(-c2 h) + (c3²/c2) h phi_2(-c3 h) in the state at c3.

    c2, c3: in (0, 1], with c2 < c3 and other than 2/3 for c2.
    """
    if not c2 < c3 or abs(2 - 3 * c2) < 1e-9:
        raise ValueError(
            "fastdiff.Sampler: expected c2 < c3 and c2 other than 2/3 for the solver 'res_3s', got"
            f" {c2!r} and {c3!r}."
        )
    gamma = c3 * (3 * c3 - 2) / (c2 * (2 - 3 * c2))
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        h = step_size(t, s)
        if abs(h) == inf:
            x = first_order(p, t, s, x0)
            continue
        middle, late = p.between(t, s, c2), s if c3 == 1 else p.between(t, s, c3)
        inner = h * (gamma * c2 * phi(c2 * h)[1] + c3**2 / c2 * phi(c3 * h)[1])
        b = h * phi(h)[1] / (gamma * c2 + c3)
        x = stages(p, t, x0, [Stage(middle, []), Stage(late, [inner]), Stage(s, [gamma * b, b])])
    return x
