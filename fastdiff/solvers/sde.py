"""The reverse SDE by Euler-Maruyama (Song et al. 2021b)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt

from ..schedule import geometry
from .grids import Time
from .registry import Peer, solver
from .trace import Linear, Trace


@solver(
    "euler_maruyama",
    paper="Song et al. 2021b (score SDE), eq. 6 and 11",
    order=1,
    stochastic=True,
    needs_data=True,
    peer=Peer(reason="has it only among its deprecated schedulers"),
)
def euler_maruyama(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = (1 - F) x + G score + sqrt(G) z, one Euler-Maruyama step of dx = f x du + g dw.

    F = ∫ f du = ln(alpha_t/alpha_s), G = ∫ g² du with g² du = 2 sigma² d ln rho, and score =
    -eps/sigma_t. G is -2F in VP, sigma_t² - sigma_s² in VE, -2F - 2 (sigma_t - sigma_s) in flow and
    -2F - (alpha_s⁴ - alpha_t⁴)/2 in sub-VP. The step into clean data returns x0, because the noise
    of the last level would remain otherwise (section 4.1).
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t)
        if s.sigma == 0:
            x = x0
            continue
        if t.alpha == 0:
            raise ZeroDivisionError("the drift of pure noise is infinite")
        drift = log(t.alpha / s.alpha)
        spread = max(geometry(p.space).diffusion(t, s), 0.0)  # a short step may round to below 0
        x = (1.0 - drift) * p.x() - (spread / t.sigma) * eps + sqrt(spread) * p.noise()
    return x
