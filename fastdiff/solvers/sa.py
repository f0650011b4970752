"""SA-Solver: stochastic Adams methods for the reverse SDEs with noise tau (Xue et al. 2023).

With lambda = ln(alpha/sigma), h = lambda_s - lambda_t, tau constant over the step and the data
prediction x0(lambda) interpolated by a polynomial, a step is exact (Xue et al. 2023, eq. 14):

    x_s = (sigma_s/sigma_t) e^(-tau² h) x_t + Σ b_k x0_k + sigma_s sqrt(1 - e^(-2 tau² h)) z
    b_k = alpha_s (1 + tau²) ∫_0^h e^(-(1 + tau²) u) l_k(lambda_s - u) du

The predictor interpolates the predictions up to t. The corrector adds the prediction at s, with the
same z.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, expm1, inf, sqrt
from typing import Annotated

import numpy as np

from .exponential import lagrange_basis, moments, step_size
from .grids import Time
from .options import FINITE, Flag, Level, Noise, Order4, one_of
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

Known = tuple[Linear, Time]
_FULL = {"lower_order_final": False}
CONFIGURATIONS = [
    Configuration({"tau": 0.0, "predictor_order": 1, "corrector_order": 0}, order=1),
    Configuration({"tau": 0.0, "predictor_order": 2, "corrector_order": 0, **_FULL}, order=2),
    Configuration({"tau": 0.0, "as_published": True, **_FULL}, order=2),
    Configuration(
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 3, **_FULL}, order=3, exact_start=True
    ),
    Configuration(
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 4, **_FULL}, order=4, exact_start=True
    ),
    Configuration(_FULL, order=2, tau=1.0),
    Configuration({"tau": 0.6, "as_published": True, **_FULL}, order=2, tau=0.6),
    Configuration({"predictor_order": 1, "corrector_order": 0}, order=1, tau=1.0),
    Configuration({"predictor_order": 3, "corrector_order": 4, **_FULL}, order=2, tau=1.0),
    Configuration({"predictor_order": 3, "corrector_order": 4}),
    Configuration(
        {"tau": 0.0, "pece": True, "predictor_order": 1, "corrector_order": 2, **_FULL}, order=2
    ),
    Configuration(
        {"tau": 0.0, "pece": True, "predictor_order": 2, "corrector_order": 3, **_FULL}, order=3
    ),
    Configuration(
        {"tau": 0.0, "pece": True, "predictor_order": 3, "corrector_order": 4, **_FULL},
        order=4,
        exact_start=True,
    ),
    Configuration({"pece": True, **_FULL}, order=2, tau=1.0),
]


def _weights(
    nodes: Sequence[Time], t: Time, s: Time, tau: float, as_published: bool
) -> list[float]:
    """Returns b_k of the nodes, from integrals of powers of v = (lambda_s - lambda)/h."""
    h, rate = step_size(t, s), 1.0 + tau**2
    if h == inf:
        return [s.alpha, *(0.0 for _ in nodes[1:])]
    if h == 0:  # equal points: the state does not change
        return [0.0] * len(nodes)
    positions = [(s.half_log_snr - q.half_log_snr) / h for q in nodes]
    scaled = rate * h * s.alpha * np.array(moments(rate * h, len(nodes)))
    weights = [float(np.dot(basis.coef, scaled)) for basis in lagrange_basis(positions)]
    if as_published and len(nodes) == 2:
        z = rate * h
        distance = nodes[0].half_log_snr - nodes[1].half_log_snr
        shift = rate * s.alpha * (0.5 * h**2 - (z + expm1(-z)) / rate**2) / distance
        weights = [weights[0] + shift, weights[1] - shift]
    return weights


def _sum(known: Sequence[Known], t: Time, s: Time, tau: float, as_published: bool) -> Linear:
    total = Linear({})
    for (x0, _), weight in zip(
        known, _weights([q for _, q in known], t, s, tau, as_published), strict=True
    ):
        total = total + weight * x0
    return total


@solver(
    "sa",
    paper="Xue et al. 2023 (SA-Solver), eq. 14 to 18, algorithm 1",
    order=2,
    stochastic=True,
    noiseless={"tau": 0.0},
    arrays=7,
    configurations=CONFIGURATIONS,
    peer=Peer("SASolver", {"timestep_spacing": "leading"}),
)
def sa(
    p: Trace,
    times: Sequence[Time],
    *,
    predictor_order: Order4 = 2,
    corrector_order: Annotated[int, one_of(range(5))] = 2,
    tau: Noise = 1.0,
    tau_min: Level = 0.0,
    tau_max: Level = inf,
    lower_order_final: Flag = True,
    as_published: Flag = False,
    pece: Flag = False,
) -> Linear:
    """The predictor, and the corrector that improves its result after the next network call.

    Args:
        predictor_order: 1 to 4.
        corrector_order: 1 to 4, or 0 for no corrector.
        tau: the noise, 0 for the probability-flow ODE and 1 for the reverse SDE: a number for steps
            that start at a noise level sigma/alpha in [tau_min, tau_max] (others have 0), or a
            function of the `Time` at which a step starts.
        lower_order_final: the orders fall over the last steps.
        as_published: formulas of order 2 have the published code's extra term of O(h³).
        pece: after a correction the network is called again on the corrected state, and its
            prediction replaces that on the predicted one (predict, evaluate, correct, evaluate).
    """
    steps, x = len(times) - 1, p.start
    past: list[Known] = []  # predictions, latest first, without one at pure noise, lambda = -inf
    base, noise_of, correct = Linear({}), 0.0, 0
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        corrected = p.x()
        past = [q for q in past if q[1].log_snr != t.log_snr]  # equal points give no slope
        if correct:
            known = [(x0, t), *past][: min(correct, len(past) + 1)]
            corrected = base + _sum(known, times[i - 1], t, noise_of, as_published)
            if pece:
                x0, _, _ = p.predict(corrected, t)
                corrected = p.x()
        if callable(tau):
            noise_of = FINITE.check("tau(point)", tau(t))
        else:
            noise_of = tau if tau_min <= t.rho <= tau_max else 0.0
        h = step_size(t, s)
        decay = exp(-(noise_of**2) * h) if noise_of else 1.0
        base = (s.sigma / t.sigma * decay) * corrected
        if noise_of and s.sigma > 0:
            base = base + s.sigma * sqrt(-expm1(-2.0 * noise_of**2 * h)) * p.noise()
        order = min(predictor_order, steps - i) if lower_order_final else predictor_order
        known = [(x0, t), *past][: 1 if h == inf else order]
        x = base + _sum(known, t, s, noise_of, as_published)
        # a step from pure noise has only the constant prediction and is not corrected
        correct = (
            0
            if h == inf
            else min(corrector_order, steps - i + 1)
            if lower_order_final
            else corrector_order
        )
        if i < steps - 1:
            if correct:
                base = p.keep(base)
            finite = [(p.keep(x0), t)] if t.log_snr > -inf else []
            past = [*finite, *past][: max(predictor_order, corrector_order) - 1]
            correct = min(correct, len(past) + 1)
    return x
