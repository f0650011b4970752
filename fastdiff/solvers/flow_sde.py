"""Samplers of flows with noise, for reinforcement learning on their steps.

A rollout needs steps with a density, x_s ~ N(mean, std² I). These samplers add noise to Euler's
step on a flow and take as much of the old noise away. Their state is one of flow matching, x_t =
(1 - t) x0 + t eps; a state of another space divided by alpha + sigma is one, so they work in every
space, with t = sigma/(alpha + sigma). Without noise each of them is `flow_euler`.

The flow dx = v dt and the SDE dx = (v - λ²/2 ∇ln p_t) dt + λ dw, run backwards, have the same
marginals for every λ(t) >= 0 (Song et al. 2021b, appendix D; Liu et al. 2025, appendix A). With the
score -eps/t a step of Euler-Maruyama over D = t - s is

    x_s = (1 - s) x0 + (s - λ² D/(2t)) eps + λ sqrt(D) z

λ² is infinite at pure noise in `flow_sde`. There, and where a step would take away more noise than
the state at s has (λ² D > 2 s t), the step is what the SDE tends to for strong noise, x_s = (1 - s)
x0 + s z: the marginal at s, if x0 is exact. It also makes the step into clean data return x0, where
Euler's step would leave noise of deviation λ sqrt(t) in the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, inf, pi, sin, sqrt

from .grids import Time
from .options import Factor, Flag, Share
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

_NO_PEER = "has no scheduler for it"


def mixed(p: Trace, t: Time, s: Time, x0: Linear, kept: float, std: float) -> Linear:
    """Returns alpha_s x0 + kept eps + std z, with the eps that x_t and x0 amount to.

    With kept = sigma_s it is Euler's step, to the bit.
    """
    x = (kept / t.sigma) * p.x() + (s.alpha - kept * t.alpha / t.sigma) * x0
    return x + std * p.noise() if std > 0 else x


def _step(p: Trace, t: Time, s: Time, x0: Linear, squared: float, *, as_published: bool) -> Linear:
    """Returns a step of Euler-Maruyama with λ² = squared, or the limit of strong noise."""
    if squared == 0:
        return mixed(p, t, s, x0, s.sigma, 0.0)
    size, time = s.alpha + s.sigma, t.sigma / (t.alpha + t.sigma)
    # size times D, without the difference of close times
    step = (s.alpha * t.sigma - s.sigma * t.alpha) / (t.alpha + t.sigma)
    kept = s.sigma - squared * step / (2.0 * time)
    if kept <= 0 and not as_published:
        return mixed(p, t, s, x0, 0.0, s.sigma)
    return mixed(p, t, s, x0, kept, sqrt(max(squared * step * size, 0.0)))


@solver(
    "flow_sde",
    paper="Liu et al. 2025 (Flow-GRPO), eq. 9",
    order=1,
    stochastic=True,
    noiseless={"noise_level": 0.0},
    configurations=[
        Configuration(order=1, tau=0.7 * sqrt(0.5)),
        Configuration({"noise_level": 0.0}, order=1),
        Configuration({"noise_level": 1.4}, order=1, tau=1.4 * sqrt(0.5)),
        Configuration({"as_published": True}, order=1, tau=0.7 * sqrt(0.5)),
    ],
    peer=Peer(reason=_NO_PEER, space="flow", prediction_type="flow"),
)
def flow_sde(
    p: Trace, times: Sequence[Time], *, noise_level: Factor = 0.7, as_published: Flag = False
) -> Linear:
    """x_s = (1 - s) x0 + (s - λ² D/(2t)) eps + λ sqrt(D) z, λ² = a² t/(1 - t), D = t - s.

    This is eq. 9, x_s = x - (v + λ²/(2t) (x + (1 - t) v)) D + λ sqrt(D) z with the velocity v =
    eps - x0. In every space it is the reverse SDE with the constant noise tau = a/sqrt(2), which
    `er_sde` with order=1 and phi=tau integrates exactly in x.

    Between levels with some data the moments converge with order 1. From pure noise, on a grid even
    in t, the first steps multiply 1 - t by 2, 3/2, …, however many they are, and Euler's error in
    them decays with a power of the number of steps: the order is then min(1, a²).

    Args:
        noise_level: a, 0.7 in the paper; 0 is `flow_euler`.
        as_published: from pure noise, 1 - t is that of the second point in λ, and the step into
            clean data has noise, as in the published code.
    """
    x, squared = p.start, noise_level * noise_level  # inf, where ** would raise
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        ratio = t.rho
        if ratio == inf and as_published:
            ratio = 1.0 + times[1].rho  # 1/(1 - t) of the second point
        of_step = squared * ratio if squared else 0.0
        if of_step == inf:
            x = mixed(p, t, s, x0, 0.0, s.sigma)
        else:
            x = _step(p, t, s, x0, of_step, as_published=as_published)
    return x


def _constant(rho: float) -> float:
    """The tau at rho of the SDE with λ = 0.3: tau² g² = λ², where g² = 2 rho in a flow's time."""
    return 0.3 / sqrt(2.0 * rho)


@solver(
    "dance_sde",
    paper="Xue et al. 2025 (DanceGRPO), the SDE of rectified flows",
    order=1,
    stochastic=True,
    noiseless={"eta": 0.0},
    configurations=[
        Configuration(order=1, tau=_constant),
        Configuration({"eta": 0.0}, order=1),
        Configuration({"as_published": True}, order=1, tau=_constant),
    ],
    peer=Peer(reason=_NO_PEER, space="flow", prediction_type="flow"),
)
def dance_sde(
    p: Trace, times: Sequence[Time], *, eta: Factor = 0.3, as_published: Flag = False
) -> Linear:
    """x_s = (1 - s) x0 + (s - eta² D/(2t)) eps + eta sqrt(D) z, with D = t - s.

    It is Euler-Maruyama on dx = (v - eta²/2 ∇ln p_t) dt + eta dw. The paper's other SDE, that of
    diffusion models with the noise eps_t g_t, has the constant tau = eps_t: take `ddim` with its
    eta, or `flow_sde` with noise_level = sqrt(2) eps_t.

    Near clean data the noise eta sqrt(D) of a step falls slower than the level, so that the last
    steps of a fine grid have the limit of strong noise; without it they would be unstable where
    eta² D > 2 t (t + s).

    Args:
        eta: λ, 0.3 in the paper; 0 is `flow_euler`.
        as_published: all steps are Euler's, that into clean data too, as in the published code.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        x = _step(p, t, s, x0, eta * eta, as_published=as_published)
    return x


@solver(
    "flow_cps",
    paper="Wang & Yu 2025 (Flow-CPS), coefficients-preserving sampling",
    stochastic=True,
    noiseless={"eta": 0.0},
    configurations=[Configuration(), Configuration({"eta": 0.0}, order=1)],
    peer=Peer(reason=_NO_PEER, space="flow", prediction_type="flow"),
)
def flow_cps(p: Trace, times: Sequence[Time], *, eta: Share = 0.8) -> Linear:
    """x_s = alpha_s x0 + sigma_s cos(eta pi/2) eps + sigma_s sin(eta pi/2) z.

    x0 and the noise have the schedule's coefficients at every step, so that no noise is left over,
    whatever the number of steps. This is DDIM's family (Song, Meng & Ermon 2021, eq. 12) with
    another std. A step replaces the same share of the noise however short it is, so there is no SDE
    that it tends to: the mean is kept, and the variance if x0 is exact, but for wide data a step of
    length 0 loses (1 - cos)² of the variance of alpha x0 given x.

    eta: in [0, 1]; 0 is `flow_euler`, and 1 draws each state anew from x0.
    """
    x = p.start
    kept, fresh = cos(0.5 * pi * eta), sin(0.5 * pi * eta)
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        x = mixed(p, t, s, x0, s.sigma * kept, s.sigma * fresh)
    return x
