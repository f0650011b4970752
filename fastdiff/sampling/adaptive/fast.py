"""DPM-Solver-fast: a fixed number of network calls in steps of order 3, with lower orders last (Lu
et al. 2022a, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt

from ...schedule import Time
from ...solvers import Linear, Trace, dpm_multistep, dpm_singlestep
from ...solvers.karras import ancestral_levels
from ...solvers.trace import Points
from ...whole import whole


def fast_orders(calls: int) -> list[int]:
    """The orders of the steps, which sum to `calls`."""
    if (whole(calls) or 0) < 1:
        raise ValueError(
            f"fastdiff.sampling.adaptive.dpm_fast: expected at least one call, got {calls!r}."
        )
    thirds, rest = divmod(calls, 3)
    return [3] * thirds + [rest] if rest else [3] * (thirds - 1) + [2, 1]


def fast_times(points: Points, high: Time, low: Time, calls: int) -> tuple[list[Time], list[int]]:
    """(points evenly spaced in lambda, orders of the steps between them)."""
    orders = fast_orders(calls)
    start, end = high.log_snr, low.log_snr
    between = [
        points.at_log_snr(start + i / len(orders) * (end - start)) for i in range(1, len(orders))
    ]
    return [high, *between, low], orders


def dpm_fast_formula(
    p: Trace,
    times: Sequence[Time],
    orders: Sequence[int],
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Linear:
    """DPM-Solver's steps of these orders. With eta each goes to a lower noise level, not below the
    end, and noise is added to return to the step's own.
    """
    x, end = p.start, times[-1]
    for t, s, order in zip(times, times[1:], orders, strict=False):
        to, up = s, 0.0
        if eta:
            down, _ = ancestral_levels(t, s, eta)
            to = p.at_log_snr(-2.0 * log(down)) if down > end.rho else end
            up = sqrt(max(s.rho**2 - to.rho**2, 0.0))
        p.start = x
        formula = dpm_multistep if order == 1 else dpm_singlestep
        x = (s.alpha / to.alpha) * formula.noise_prediction(p, [t, to], order)
        if up > 0 and s_noise > 0:
            x = x + s.alpha * up * s_noise * p.noise()
    return x
