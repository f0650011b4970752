"""SA-Solver's noise prediction as diffusers has it (Xue et al. 2023, appendix).

eps is interpolated by a polynomial in lambda:

    x_s = (alpha_s/alpha_t) x_t - (1 + tau²) alpha_s Σ eps_k ∫ e^-lambda l_k(lambda) dlambda
          + tau sigma_s sqrt(e^2h - 1) z
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, expm1, sqrt

import numpy as np

from ....schedule import Time
from ....solvers import Linear, Trace
from ....solvers.exponential import lagrange_basis, moments, step_size

Known = tuple[Linear, Time]


def _sum(known: Sequence[Known], t: Time, s: Time, tau: float) -> Linear:
    """The interpolated term of a step from t to s."""
    h = step_size(t, s)
    nodes = [(q.half_log_snr - t.half_log_snr) / h for _, q in known] if h else []
    scale = h * (1.0 + tau**2) * s.alpha * exp(-t.half_log_snr)
    powers = np.array(moments(h, len(known)))  # ∫ e^(-h v) v^j dv, v = (lambda - lambda_t)/h
    total = Linear({})
    for (eps, _), basis in zip(known, lagrange_basis(nodes), strict=False):
        total = total - scale * float(basis.coef @ powers) * eps
    return total


def noise_prediction(
    p: Trace,
    times: Sequence[Time],
    *,
    predictor_order: int,
    corrector_order: int,
    tau: Callable[[Time], float],
    lower_order_final: bool,
) -> Linear:
    """Predictor, and corrector with the same noise.

    Predictions at equal points are left out of the history.
    """
    steps, x = len(times) - 1, p.start
    past: list[Known] = []
    base, noise_of, correct = Linear({}), 0.0, 0
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        _, eps = p.predict_eps(x, t)
        corrected = p.x()
        past = [known for known in past if known[1].log_snr != t.log_snr]
        if correct:
            known = [(eps, t), *past][:correct]
            corrected = base + _sum(known, times[i - 1], t, noise_of)
        noise_of, h = tau(t), step_size(t, s)
        base = (s.alpha / t.alpha) * corrected
        if noise_of and h > 0:
            base = base + noise_of * s.sigma * sqrt(expm1(2.0 * h)) * p.noise()
        order = min(predictor_order, steps - i) if lower_order_final else predictor_order
        x = base + _sum([(eps, t), *past][:order], t, s, noise_of)
        correct = min(corrector_order, steps - i + 1) if lower_order_final else corrector_order
        base = p.keep(base)
        past = [(p.keep(eps), t), *past][: max(predictor_order, corrector_order) - 1]
    return x
