"""DDPM: ancestral sampling from q(x_s | x_t, x0) with x0 replaced by its prediction (Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from .grids import Time
from .registry import solver
from .trace import Linear, Trace


@solver("ddpm", paper="Ho et al. 2020, eq. 6-7; respaced as Nichol & Dhariwal 2021, eq. 19", stochastic=True)
def ddpm(p: Trace, times: Sequence[Time], *, variance_type: str = "fixed_small") -> Linear:
    """x_s = (alpha_s sigma_ts²/sigma_t²) x0 + (alpha_ts sigma_s²/sigma_t²) x_t + std z.

    variance_type: `fixed_small`, std² = sigma_ts² sigma_s²/sigma_t² (beta-tilde, eq. 7); `fixed_large`, std² =
    sigma_ts² (beta, section 3.2) and no noise on the last step.
    """
    if variance_type not in ("fixed_small", "fixed_large"):
        raise ValueError(
            f"fastdiff.Sampler: expected variance_type in ['fixed_large', 'fixed_small'], got {variance_type!r}."
        )
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        alpha_ts, variance_ts = t.transition(s)
        to_x0, to_x = s.alpha * variance_ts / t.sigma**2, alpha_ts * s.sigma**2 / t.sigma**2
        x = to_x0 * x0 + to_x * p.x()
        if s.sigma > 0:
            variance = variance_ts * (s.sigma / t.sigma) ** 2 if variance_type == "fixed_small" else variance_ts
            x = x + sqrt(variance) * p.noise()
    return x
