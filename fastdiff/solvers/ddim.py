"""DDIM: implicit sampling with noise eta, deterministic at eta = 0 (Song et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from .grids import Time
from .registry import solver
from .trace import Linear, Trace


@solver("ddim", paper="Song, Meng & Ermon 2021, eq. 12 and 16")
def ddim(p: Trace, times: Sequence[Time], *, eta: float = 0.0, use_clipped_model_output: bool = False) -> Linear:
    """x_s = alpha_s x0 + sqrt(sigma_s² - std²) eps + std z, std = eta (sigma_s/sigma_t) sigma_ts.

    eta: 0 deterministic, 1 DDPM's posterior variance. use_clipped_model_output: eps derived anew from the clipped x0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"fastdiff.Sampler: expected eta in [0, 1], got {eta!r}.")
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t)
        if use_clipped_model_output:
            eps = (p.x() - t.alpha * x0) / t.sigma
        _, variance_ts = t.transition(s)
        std = eta * s.sigma / t.sigma * sqrt(variance_ts)
        x = s.alpha * x0 + sqrt(s.sigma**2 - std**2) * eps
        if std > 0:
            x = x + std * p.noise()
    return x
