"""UniPC: a unified predictor-corrector of any order (Zhao et al. 2023).

A step takes one network call. The prediction at t first corrects x_t, and the predictor then uses
it for the step from t.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, factorial, inf
from typing import Annotated

import numpy as np

from .exponential import step_size
from .grids import Time
from .options import Flag, Indices, Order3, one_of
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

ALL_ORDERS = {"lower_order_final": False}


def _weights(ratios: list[float], hh: float, variant: str) -> tuple[list[float], float]:
    """Returns rho and B(h), with R(r) rho = b (Zhao et al. 2023, eq. 10 to 12).

    hh: h where eps is interpolated, -h where x0 is.
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
    """Returns x_s.

    Args:
        x: x_t.
        m0: the prediction at t.
        others: other predictions, each with its ratio r; a single one gets rho = 1/2.
        variant: `bh1` or `bh2`.
        predict_x0: whether predictions are of x0 or of eps.
    """
    h = step_size(t, s)
    if h == inf:  # to clean data or from pure noise: exact for a constant prediction
        return s.alpha * (m0 if predict_x0 else (x - t.sigma * m0) / t.alpha) + (
            (s.sigma / t.sigma) * x if predict_x0 else s.sigma * m0
        )
    if h == 0:  # equal points: the state does not change
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
    """Returns the predictions with their r = (lambda - lambda_t)/h.

    It leaves out predictions that give no slope: one at pure noise, where lambda = -inf, and one at
    the same point as another.
    """
    used, ratios = {-inf, t.log_snr}, []
    for m, q in past:
        if h != 0 and q.log_snr not in used:
            ratios.append((m, (q.half_log_snr - t.half_log_snr) / h))
            used.add(q.log_snr)
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
    order: Order3 = 2,
    solver_type: Annotated[str, one_of(("bh1", "bh2"))] = "bh2",
    lower_order_final: Flag = True,
    predict_x0: Flag = True,
    disable_corrector: Indices = (),
) -> Linear:
    """The predictor of the given order, and the corrector of one order more.

    Args:
        order: of the predictor, 1 to 3.
        solver_type: B(h) = h (`bh1`) or e^h - 1 (`bh2`).
        lower_order_final: the order falls to 1 over the last steps, which is more stable with few
            steps. The step into clean data always has order 1.
        predict_x0: interpolate x0 if true, eps if not.
        disable_corrector: indices of the steps, from 0, that are not corrected.
    """
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
