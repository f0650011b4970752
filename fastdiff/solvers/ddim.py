"""DDIM and its inversion (Song, Meng & Ermon 2021).

DDIM adds noise in proportion to eta and is deterministic at eta = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from .grids import Time
from .options import Flag, Share
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace


def ddim_step(p: Trace, t: Time, s: Time, x0: Linear, eps: Linear, eta: float) -> Linear:
    """Returns x_s = alpha_s x0 + sqrt(sigma_s² - std²) eps + std z.

    std = eta (sigma_s/sigma_t) sigma_ts, where sigma_ts is the deviation of q(x_t | x_s).
    """
    _, variance_ts = t.transition(s)
    std = eta * s.sigma / t.sigma * sqrt(variance_ts)
    x = s.alpha * x0 + sqrt(s.sigma**2 - std**2) * eps
    return x + std * p.noise() if std > 0 else x


@solver(
    "ddim",
    paper="Song, Meng & Ermon 2021, eq. 12 and 16",
    noiseless={"eta": 0.0},
    configurations=[
        Configuration(order=1),
        Configuration({"eta": 1.0}, order=1, tau=1.0),
        Configuration({"eta": 0.5}),
    ],
    peer=Peer("DDIM", {"clip_sample": False}),
)
def ddim(
    p: Trace, times: Sequence[Time], *, eta: Share = 0.0, use_clipped_model_output: Flag = False
) -> Linear:
    """x_s = alpha_s x0 + sqrt(sigma_s² - std²) eps + std z, std = eta (sigma_s/sigma_t) sigma_ts.

    Args:
        eta: in [0, 1]; 0 is deterministic, 1 has the variance of DDPM's posterior, which is the
            policy of DDPO (Black et al. 2023).
        use_clipped_model_output: compute eps from the clipped x0 instead of the network's output.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t)
        if use_clipped_model_output:
            eps = (p.x() - t.alpha * x0) / t.sigma
        x = ddim_step(p, t, s, x0, eps, eta)
    return x


@solver(
    "ddim_inverse",
    paper="Song, Meng & Ermon 2021, section 4.3: eq. 13 from data to noise",
    reverse=True,
    configurations=[Configuration()],
    peer=Peer("DDIMInverse", {"clip_sample": False}),
)
def ddim_inverse(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = alpha_s x0 + sigma_s eps, with s noisier than t.

    To first order, the result is the x_T from which DDIM returns to the data. Networks are not
    trained at clean data, so the first call gets the time of the first noisy point.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t, time_of=s if t.sigma == 0 else t)
        x = s.alpha * x0 + s.sigma * eps
    return x
