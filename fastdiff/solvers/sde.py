"""The reverse SDE by Euler-Maruyama (Song et al. 2021b)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt

from .grids import Time
from .registry import solver
from .trace import Linear, Trace


@solver("euler_maruyama", paper="Song et al. 2021b (score SDE), eq. 6 and 11", order=1, stochastic=True)
def euler_maruyama(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = x + (beta/2) x + beta score + sqrt(beta) z, beta = ∫ beta(u) du = -2 ln(alpha_t/alpha_s); denoised at the end.

    score = -eps/sigma_t. The last step returns x0, without which the noise of the last level stays (section 4.1).
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t)
        if s.sigma == 0:
            x = x0
            continue
        beta = -2.0 * log(t.alpha / s.alpha)
        x = (1.0 + 0.5 * beta) * p.x() - (beta / t.sigma) * eps + sqrt(beta) * p.noise()
    return x
