"""The reverse SDE by Euler-Maruyama (Song et al. 2021b)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt

from ..schedule import geometry
from .flow_sde import mixed
from .grids import Time
from .options import Factor
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace


@solver(
    "euler_maruyama",
    paper="Song et al. 2021b (score SDE), eq. 6 and 11",
    order=1,
    stochastic=True,
    noiseless={"tau": 0.0},
    configurations=[
        Configuration(order=1, tau=1.0),
        Configuration({"tau": 0.0}),
        Configuration({"tau": 0.5}, order=1, tau=0.5),
    ],
    peer=Peer(reason="has it only among its deprecated schedulers"),
)
def euler_maruyama(p: Trace, times: Sequence[Time], *, tau: Factor = 1.0) -> Linear:
    """x_s = (1 - F) x + (1 + tau²)/2 G score + tau sqrt(G) z, Euler-Maruyama on the reverse SDE.

    The SDE is dx = (f x - (1 + tau²)/2 g² score) du + tau g dw, which has the same marginals for
    every tau. F = ∫ f du = ln(alpha_t/alpha_s), G = ∫ g² du with g² du = 2 sigma² d ln rho, and
    score = -eps/sigma_t. G is -2F in VP, sigma_t² - sigma_s² in VE, -2F - 2 (sigma_t - sigma_s) in
    flow and -2F - (alpha_s⁴ - alpha_t⁴)/2 in sub-VP. The step into clean data returns x0, because
    the noise of the last level would remain otherwise (section 4.1).

    F and G are infinite from pure noise, where x0 does not depend on x. The SDE then forgets x, x_s
    = alpha_s x0 + sigma_s z, and the flow is x_s = alpha_s x0 + sigma_s eps.

    tau: factor of the noise, 1 in the paper; 0 is Euler's method on the probability flow.
    """
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t)
        if s.sigma == 0:
            x = x0
        elif t.alpha == 0:
            x = mixed(p, t, s, x0, 0.0, s.sigma) if tau else mixed(p, t, s, x0, s.sigma, 0.0)
        else:
            drift = log(t.alpha / s.alpha)
            # a short step may round to below 0
            spread = max(geometry(p.space).diffusion(t, s), 0.0)
            gain = 0.5 * (1.0 + tau**2) * spread
            x = (1.0 - drift) * p.x() - (gain / t.sigma) * eps
            if tau:
                x = x + tau * sqrt(spread) * p.noise()
    return x
