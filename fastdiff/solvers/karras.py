"""Solvers of Karras et al. 2022 for the ODE dx/drho = (x - x0)/rho.

x is Karras' x, the state over alpha, and rho = sigma/alpha is his sigma. Euler's step on this ODE
is DDIM's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log, log1p, sqrt

from .grids import Time
from .options import FINITE, STRENGTH, Factor, Level, Strength
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

LEADING = {"timestep_spacing": "leading"}  # configures the same steps in diffusers
# the tau that s_churn = 4 amounts to on the order tests' grid, even in ln rho from 20 to 0.05
CHURN = sqrt(4.0 / log(400))


def euler_step(t: Time, s: Time, x: Linear, x0: Linear) -> Linear:
    """Returns x_s = alpha_s x0 + (sigma_s/sigma_t) (x_t - alpha_t x0), Euler's step."""
    return (s.sigma / t.sigma) * x + (s.alpha - s.sigma * t.alpha / t.sigma) * x0


def slope(t: Time, x: Linear, x0: Linear) -> Linear:
    """Returns dx/drho of Karras' x, which is eps."""
    return (x - t.alpha * x0) / t.sigma


def churned(p: Trace, t: Time, x: Linear, gamma: float, s_noise: float) -> tuple[Time, Linear]:
    """Returns the point with 1 + gamma times rho, and the state with noise added up to there.

    These are lines 5 and 6 of algorithm 2.
    """
    if x.terms == p.start.terms:
        x = p.pause(x, t)  # the noise needs a row, and no network call has opened one
    up = p.at_log_snr(t.log_snr - 2.0 * log1p(gamma))
    # a churn below the rounding of rho may round to below 0
    added = sqrt(max(up.rho**2 - t.rho**2, 0.0)) * s_noise
    return up, (up.alpha / t.alpha) * x + up.alpha * added * p.noise()


def stochastic(
    p: Trace,
    times: Sequence[Time],
    *,
    heun: bool,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> Linear:
    """Algorithm 2 of Karras et al. 2022.

    heun: False for Euler's step alone. s_churn: 0 gives algorithm 1. The other arguments are those
    of the paper; rho is its sigma.
    """
    STRENGTH.check("s_churn", s_churn)
    FINITE.check("s_noise", s_noise)
    x = p.start
    gamma = min(s_churn / (len(times) - 1), sqrt(2.0) - 1.0)
    for t, s in zip(times, times[1:], strict=False):
        if gamma > 0 and s_tmin <= t.rho <= s_tmax and t.rho < inf:
            t, x = churned(p, t, x, gamma, s_noise)
        x0, _, _ = p.predict(x, t)
        x = euler_step(t, s, p.x(), x0)
        if heun and 0 < s.rho and t.rho < inf:
            x = trapezoid(p, s, x, slope(t, p.x(), x0), slope, s.alpha * (s.rho - t.rho))
    return x


def trapezoid(
    p: Trace,
    s: Time,
    x: Linear,
    first: Linear,
    derivative: Callable[[Time, Linear, Linear], Linear],
    width: float,
) -> Linear:
    """Returns the result of Heun's step, after one more network call at the end of Euler's step.

    Args:
        s: the point where the step ends.
        x: the state after Euler's step.
        first: the derivative at the start of the step.
        derivative: (point, state, x0) -> derivative there.
        width: length of the step.
    """
    before = p.keep(first)
    y0, _, _ = p.predict(x, s)
    return p.x() + 0.5 * width * (derivative(s, p.x(), y0) - before)


@solver(
    "euler",
    paper="Karras et al. 2022, algorithm 2 without its second-order part",
    order=1,
    noiseless={"s_churn": 0.0},
    configurations=[Configuration(order=1), Configuration({"s_churn": 4.0}, order=1, tau=CHURN)],
    peer=Peer("EulerDiscrete", LEADING, sampler="euler"),
)
def euler(
    p: Trace,
    times: Sequence[Time],
    *,
    s_churn: Strength = 0.0,
    s_tmin: Level = 0.0,
    s_tmax: Level = inf,
    s_noise: Factor = 1.0,
) -> Linear:
    """Euler's method; s_churn > 0 adds noise before each step that starts in [s_tmin, s_tmax]."""
    return stochastic(
        p, times, heun=False, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
    )


@solver(
    "heun",
    paper="Karras et al. 2022, algorithm 1",
    order=2,
    calls=2,
    arrays=4,
    peer=Peer("HeunDiscrete", LEADING, sampler="heun"),
)
def heun(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x_t + (rho_s - rho_t)(eps_t + eps_s)/2, with eps_s at the end of Euler's step."""
    return stochastic(p, times, heun=True, s_churn=0.0, s_tmin=0.0, s_tmax=inf, s_noise=1.0)


@solver(
    "edm",
    paper="Karras et al. 2022, algorithm 2",
    order=1,
    calls=2,
    stochastic=True,
    noiseless={"s_churn": 0.0},
    arrays=4,
    configurations=[
        Configuration({"s_churn": 4.0, "s_tmin": 0.0, "s_noise": 1.0}, order=1, tau=CHURN)
    ],
    peer=Peer(
        sampler="heun",
        arguments={"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003},
        reason="has Heun's method without churn",
        prediction_type="v",
    ),
)
def edm(
    p: Trace,
    times: Sequence[Time],
    *,
    s_churn: Strength = 40.0,
    s_tmin: Level = 0.05,
    s_tmax: Level = 50.0,
    s_noise: Factor = 1.003,
) -> Linear:
    """Heun's method; s_churn > 0 adds noise before each step that starts in [s_tmin, s_tmax]."""
    return stochastic(
        p, times, heun=True, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
    )


def ancestral_levels(t: Time, s: Time, eta: float) -> tuple[float, float]:
    """Returns (the rho to step down to, the rho of the noise to add): down² + up² = rho_s².

    See Song, Meng & Ermon 2021, eq. 16, in rho.
    """
    up = (
        min(s.rho, eta * s.rho * sqrt(max((1.0 - s.rho / t.rho) * (1.0 + s.rho / t.rho), 0.0)))
        if s.rho
        else 0.0
    )
    return sqrt(max(s.rho**2 - up**2, 0.0)), up


@solver(
    "euler_ancestral",
    paper="Song, Meng & Ermon 2021, eq. 12 and 16, in rho",
    order=1,
    stochastic=True,
    noiseless={"eta": 0.0},
    peer=Peer("EulerAncestralDiscrete", LEADING, sampler="euler_ancestral"),
)
def euler_ancestral(
    p: Trace, times: Sequence[Time], *, eta: Strength = 1.0, s_noise: Factor = 1.0
) -> Linear:
    """Euler's step down, then noise (`ancestral_levels`).

    eta: factor of the noise; 0 is Euler's method, infinity draws each state anew from x0. s_noise:
    another factor, of the noise alone.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        down, up = ancestral_levels(t, s, eta)
        x = s.alpha * ((down / t.sigma) * p.x() + (1.0 - down / t.rho) * x0)
        if up > 0:
            x = x + s.alpha * up * s_noise * p.noise()
    return x


def _kdpm2(p: Trace, times: Sequence[Time], *, eta: float, s_noise: float) -> Linear:
    """The midpoint rule in ln rho, DPM-2 in Karras et al. 2022, section 3."""
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        down, up = ancestral_levels(t, s, eta)
        if down == 0 or t.rho == inf:
            x = s.alpha * ((down / t.sigma) * p.x() + (1.0 - down / t.rho) * x0)
        else:
            start = p.keep(p.x())
            below = p.at_log_snr(-2.0 * log(down))
            middle = p.between(t, below, 0.5)
            y0, _, _ = p.predict(euler_step(t, middle, p.x(), x0), middle)
            d = slope(middle, p.x(), y0)
            x = s.alpha * (start / t.alpha + (down - t.rho) * d)
        if up > 0:
            x = x + s.alpha * up * s_noise * p.noise()
    return x


@solver(
    "kdpm2",
    paper="Karras et al. 2022, section 3; midpoint in ln rho",
    order=2,
    calls=2,
    arrays=4,
    peer=Peer("KDPM2Discrete", LEADING, sampler="dpm_2"),
)
def kdpm2(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x_t + (rho_s - rho_t) eps_m, with eps_m at the middle of the step in ln rho."""
    return _kdpm2(p, times, eta=0.0, s_noise=1.0)


@solver(
    "kdpm2_ancestral",
    paper="as kdpm2, with the noise of euler_ancestral",
    order=1,
    calls=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    arrays=4,
    peer=Peer("KDPM2AncestralDiscrete", LEADING, sampler="dpm_2_ancestral"),
)
def kdpm2_ancestral(
    p: Trace, times: Sequence[Time], *, eta: Strength = 1.0, s_noise: Factor = 1.0
) -> Linear:
    """A step of kdpm2 down to a lower level, then noise; eta and s_noise as in euler_ancestral."""
    return _kdpm2(p, times, eta=eta, s_noise=s_noise)
