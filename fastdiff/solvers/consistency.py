"""Samplers of distilled networks: LCM (Luo et al. 2023) and TCD (Zheng et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from .grids import Time
from .options import Factor, Share
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace


@solver(
    "lcm",
    paper="Luo et al. 2023 (LCM), eq. 9; Song et al. 2023, algorithm 1",
    stochastic=True,
    configurations=[Configuration()],
    peer=Peer("LCM"),
)
def lcm(
    p: Trace, times: Sequence[Time], *, timestep_scaling: Factor = 10.0, sigma_data: Factor = 0.5
) -> Linear:
    """x_s = alpha_s f + sigma_s z, with the consistency function f = c_skip x + c_out x0.

    c_skip = sd²/(u² + sd²) and c_out = u/sqrt(u² + sd²), with u = timestep_scaling·t and sd =
    sigma_data. They give the boundary condition f(x, 0) = x.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        u = timestep_scaling * t.t
        total = u**2 + sigma_data**2
        denoised = (sigma_data**2 / total) * p.x() + (u / sqrt(total)) * x0
        x = s.alpha * denoised
        if s.sigma > 0:
            x = x + s.sigma * p.noise()
    return x


@solver(
    "tcd",
    paper="Zheng et al. 2024 (TCD), algorithm 4, eq. 20",
    stochastic=True,
    noiseless={"eta": 0.0},
    configurations=[Configuration(), Configuration({"eta": 0.0}, order=1)],
    peer=Peer("TCD"),
)
def tcd(p: Trace, times: Sequence[Time], *, eta: Share = 0.3) -> Linear:
    """DDIM's step to the timestep (1 - eta) s, then noise that leads back to s.

    eta: in [0, 1]; 0 is DDIM and 1 is multistep consistency sampling.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t)
        if s.sigma == 0:
            x = s.alpha * x0
            continue
        # s itself may lie between two timesteps
        down = p.at(max(int((1 - eta) * s.t), 0)) if eta else s
        if down.log_snr < s.log_snr:  # s is below all timesteps: no step down is left
            down = s
        alpha_sd, variance_sd = s.transition(down)
        x = alpha_sd * (down.alpha * x0 + down.sigma * eps)
        if eta > 0:
            x = x + sqrt(variance_sd) * p.noise()
    return x
