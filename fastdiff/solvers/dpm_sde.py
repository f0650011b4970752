"""DPM-Solver++ with noise in each step: the SDE in two stages, and the ancestral singlestep method.

A step from rho_t = sigma_t/alpha_t goes down to rho_d and adds noise of deviation rho_u to
x/alpha, with rho_d² + rho_u² = rho_s².
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, inf, log, sqrt
from typing import Annotated

from .exponential import first_order
from .grids import Time
from .karras import ancestral_levels
from .options import Factor, Flag, Part, Strength, one_of
from .registry import Peer, solver
from .trace import Linear, Trace


@solver(
    "dpm++sde",
    paper="Lu et al. 2022b (DPM-Solver++), eq. 9 on the reverse SDE, in two stages",
    order=1,
    calls=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    arrays=5,
    peer=Peer("DPMSolverSDE", {"timestep_spacing": "leading"}, sampler="dpmpp_sde"),
)
def dpmpp_sde(
    p: Trace,
    times: Sequence[Time],
    *,
    eta: Strength = 1.0,
    s_noise: Factor = 1.0,
    r: Part = 0.5,
    nested: Flag = False,
    clock: Annotated[str, one_of(("snr", "rho"))] = "snr",
) -> Linear:
    """The fraction r of the step in log-SNR, then the whole step with (1 - 1/2r) x0 + 1/2r x0'.

    x0 is the prediction at t, and x0' that after the first stage. Both stages follow one Brownian
    path. With eta = 1 the state over sigma² has independent increments of variance 1/rho_s² -
    1/rho_t², so the noise of the whole step is sqrt(w) z + sqrt(1 - w) z', where z is the draw of
    the first stage, z' is fresh and w is the first stage's share of the variance.

    Args:
        eta: factor of the noise; 0 follows the probability flow.
        s_noise: another factor of the noise, without a change of the step down.
        r: fraction of the step that the first stage takes.
        nested: the second stage's draw is already that of the whole step, because the caller
            evaluates one Brownian path.
        clock: the time of the path: 1/rho² (`snr`), or rho as in the published code (`rho`), which
            gives a w that is too small.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        down, up = ancestral_levels(t, s, eta)
        if s.log_snr == inf or t.log_snr == -inf:  # an infinite step has no fraction
            x = s.alpha * ((down / t.sigma) * p.x() + (1.0 - down / t.rho) * x0)
            if up > 0 and s_noise > 0:
                x = x + s.alpha * up * s_noise * p.noise()
            continue
        start, first, middle = p.keep(p.x()), p.keep(x0), p.between(t, s, r)
        down, up = ancestral_levels(t, middle, eta)
        x = middle.alpha * ((down / t.sigma) * p.x() + (1.0 - down / t.rho) * x0)
        noisy, share = up > 0 and s_noise > 0, 0.0
        if noisy:
            drawn = p.noise()
            x = x + middle.alpha * up * s_noise * drawn
            if not nested:
                h = s.log_snr - t.log_snr
                if t.rho == s.rho:
                    share = r  # a level that is there twice: the limit of a short step
                elif clock == "rho":
                    share = (t.rho - middle.rho) / (t.rho - s.rho)
                else:
                    share = expm1(r * h) / expm1(h) if h < 700 else 0.0
                before = p.keep(drawn)
        y0, _, _ = p.predict(x, middle)
        down, up = ancestral_levels(t, s, eta)
        change = (1.0 - down / t.rho) * ((1.0 - 0.5 / r) * first + (0.5 / r) * y0)
        x = s.alpha * ((down / t.sigma) * start + change)
        if noisy:
            whole = sqrt(1.0 - share) * p.noise()
            x = x + s.alpha * up * s_noise * (whole if nested else whole + sqrt(share) * before)
    return x


@solver(
    "dpm++2s_ancestral",
    paper="Lu et al. 2022b (DPM-Solver++), algorithm 1, with the noise of euler_ancestral",
    order=1,
    calls=2,
    stochastic=True,
    noiseless={"eta": 0.0},
    arrays=4,
    peer=Peer(sampler="dpmpp_2s_ancestral"),
)
def dpmpp_2s_ancestral(
    p: Trace, times: Sequence[Time], *, eta: Strength = 1.0, s_noise: Factor = 1.0
) -> Linear:
    """A step of dpm++2s from rho_t down to rho_d, then noise of deviation rho_u.

    eta: factor of the noise; 0 is dpm++2s. s_noise: another factor, of the noise alone.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        down, up = ancestral_levels(t, s, eta)
        if down == 0 or t.log_snr == -inf:
            x = s.alpha * ((down / t.sigma) * p.x() + (1.0 - down / t.rho) * x0)
        else:
            start, below = p.keep(p.x()), p.at_log_snr(-2.0 * log(down))
            middle = p.between(t, below, 0.5)
            y0, _, _ = p.predict(first_order(p, t, middle, x0), middle)
            x = s.alpha * ((down / t.sigma) * start + (1.0 - down / t.rho) * y0)
        if up > 0 and s_noise > 0:
            x = x + s.alpha * up * s_noise * p.noise()
    return x
