"""DPM-Solver++ with noise inside its steps: the SDE in two stages, and the ancestral singlestep
method.

In rho = sigma/alpha, on x/alpha: a step down to rho_d with noise of rho_u put back, rho_d² + rho_u²
= rho_s².
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, inf, log, sqrt

from .exponential import first_order
from .grids import Time
from .karras import ancestral_levels
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
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    nested: bool = False,
    clock: str = "snr",
) -> Linear:
    """First the fraction r of the step in log-SNR, then the whole of it with (1 - 1/2r) x0 + 1/2r
    x0'.

    Both stages follow one Brownian path. With eta = 1 the state over sigma² has independent
    increments of variance 1/rho_s² - 1/rho_t², so the noise of the whole step is sqrt(w) z + sqrt(1
    - w) z', z the first stage's, z' fresh and w the first stage's share. nested: the draw of the
    second stage is the whole step's, given by who knows the path.
    clock: the path's time, 1/rho² (`snr`), or rho itself as in the published code, which makes w
        smaller than it is.
    """
    if clock not in ("snr", "rho"):
        raise ValueError(f"fastdiff.Sampler: expected clock in ['snr', 'rho'], got {clock!r}.")
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        down, up = ancestral_levels(t, s, eta)
        if s.log_snr == inf or t.log_snr == -inf:  # there is no fraction of an infinite way
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
                share = expm1(r * h) / expm1(h) if h < 700 else 0.0
                if clock == "rho":
                    share = (t.rho - middle.rho) / (t.rho - s.rho)
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
    p: Trace, times: Sequence[Time], *, eta: float = 1.0, s_noise: float = 1.0
) -> Linear:
    """dpm++2s from rho_t down to rho_d, then noise of rho_u."""
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
