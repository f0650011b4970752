"""UniPC: a unified predictor-corrector of any order; the corrector reuses the next prediction (Zhao
et al. 2023).

One network call a step: at t the corrector first improves x_t with the prediction made there, then
    the predictor steps on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, factorial, inf

import numpy as np

from .exponential import step_size
from .grids import Time
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

ALL_ORDERS = {"lower_order_final": False}


def _weights(ratios: list[float], hh: float, variant: str) -> tuple[list[float], float]:
    """(rho, B(h)) with R(r) rho = b (Zhao et al. 2023, eq. 10 to 12); hh is h for the noise
    prediction, -h for data.
    """
    b_h = hh if variant == "bh1" else expm1(hh)
    phi, b = expm1(hh) / hh - 1.0, []
    for i in range(1, len(ratios) + 1):
        b.append(phi * factorial(i) / b_h)
        phi = phi / hh - 1.0 / factorial(i + 1)
    r = np.array(ratios)
    matrix = np.array([r**i for i in range(len(ratios))])
    return list(np.linalg.solve(matrix, np.array(b))), b_h


def _update(
    t: Time,
    s: Time,
    x: Linear,
    m0: Linear,
    others: list[tuple[Linear, float]],
    variant: str,
    predict_x0: bool,
) -> Linear:
    """x_s from x_t, the prediction there and others with their ratios r; a single one takes rho =
    1/2.
    """
    h = step_size(t, s)
    if h == inf:  # into clean data or out of pure noise: exact for a constant prediction
        return s.alpha * (m0 if predict_x0 else (x - t.sigma * m0) / t.alpha) + (
            (s.sigma / t.sigma) * x if predict_x0 else s.sigma * m0
        )
    if h == 0:  # equal points: nothing moves
        return x
    hh, keeps, scale = (
        (-h, s.sigma / t.sigma, s.alpha) if predict_x0 else (h, s.alpha / t.alpha, s.sigma)
    )
    result = keeps * x - scale * expm1(hh) * m0
    if not others:
        return result
    ratios = [r for _, r in others]
    rho, b_h = _weights(ratios, hh, variant)
    if len(others) == 1:
        rho = [0.5]
    for weight, (m, r) in zip(rho, others, strict=True):
        result = result - scale * b_h * (weight / r) * (m - m0)
    return result


def _ratios(t: Time, past: list[tuple[Linear, Time]], h: float) -> list[tuple[Linear, float]]:
    """Predictions with r = (lambda - lambda_t)/h; one at pure noise, lambda = -inf, or at a point
    that another has too, tells nothing about a slope.
    """
    seen, ratios = {-inf, t.log_snr}, []
    for m, q in past:
        if h != 0 and q.log_snr not in seen:
            ratios.append((m, (q.half_log_snr - t.half_log_snr) / h))
            seen.add(q.log_snr)
    return ratios


@solver(
    "unipc",
    paper="Zhao et al. 2023 (UniPC), algorithms 5 to 8",
    order=3,
    arrays=8,
    configurations=[
        Configuration({"order": 1, **ALL_ORDERS}, order=2),
        Configuration({"order": 2, **ALL_ORDERS}, order=3),
        Configuration({"order": 3, **ALL_ORDERS}, order=4, exact_start=True),
        Configuration({"order": 3}),
    ],
    peer=Peer("UniPCMultistep", {"timestep_spacing": "leading"}),
)
def unipc(
    p: Trace,
    times: Sequence[Time],
    *,
    order: int = 2,
    solver_type: str = "bh2",
    lower_order_final: bool = True,
    predict_x0: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Linear:
    """order: of the predictor, 1 to 3 (the corrector adds one); solver_type: B(h) = h (`bh1`) or
    e^h - 1 (`bh2`).

    lower_order_final: the order falls to 1 over the last steps, steadier with few of them. Into
        clean data it is 1 anyway.
    predict_x0: whether x0 or eps is interpolated. disable_corrector: steps, from 0, whose result is
        not corrected.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"fastdiff.Sampler: expected order in [1, 2, 3], got {order!r}.")
    if solver_type not in ("bh1", "bh2"):
        raise ValueError(
            f"fastdiff.Sampler: expected solver_type in ['bh1', 'bh2'], got {solver_type!r}."
        )
    x, steps = p.start, len(times) - 1
    past: list[tuple[Linear, Time]] = []  # predictions, latest first
    last: Linear | None = None  # the corrected state of the step before
    used = 1
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        m = p.predict(x, t).x0 if predict_x0 else p.predict_eps(x, t)[1]
        corrected = p.x()
        if last is not None and i - 1 not in disable_corrector:
            before = past[0][1]
            h = step_size(before, t)
            others = _ratios(before, past[1:used], h)
            corrected = _update(
                before, t, last, past[0][0], [*others, (m, 1.0)], solver_type, predict_x0
            )
        used = min(order, i + 1, steps - i if lower_order_final else order)
        h = step_size(t, s)
        others = [] if h == inf else _ratios(t, past[: used - 1], h)
        x = _update(t, s, corrected, m, others, solver_type, predict_x0)
        if i < steps - 1:
            past = [(p.keep(m), t), *past][:order]
            last = p.keep(corrected)
    return x
