"""DPM-Solver's four algorithms as diffusers runs them: its choice of orders, and its quirks.

The formulas are those of `solvers.dpm_multistep` and `solvers.exponential` (Lu et al. 2022a,
2022b). Quirks: the second divided difference counts as the whole second derivative
(`as_published`); the constant in D2's weight of sde-dpmsolver++ is -1/2 where the formula has +1/2
(`_SDE_CURVATURE`); a first-order step of dpmsolver is taken in x and eps (`through_x0=False`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....schedule import Time
from ....solvers import Linear, Trace, dpm_multistep
from ....solvers.dpm_multistep import SOLVER_TYPES as SOLVER_TYPES
from ....solvers.exponential import Weights, data_weights, noise_weights, step_size
from ....solvers.trace import Prediction


class Unrounded(Trace):
    """A trace whose x0, where nothing clips it, is its formula in x and the output.

    Steps towards noise multiply x and x0 by sigma_s/sigma_t, up to hundreds, and what remains is
    their difference. A kernel's x0 is rounded before that; here both coefficients of x are added in
    float64.
    """

    def predict(self, x: Linear, t: Time, *, time_of: Time | None = None) -> Prediction:
        prediction = super().predict(x, t, time_of=time_of)
        if self._clip:
            return prediction
        c = self.parametrization.at(t.alpha, t.sigma)
        return prediction._replace(x0=c.x0_x * self.x() + c.x0_out * prediction.out)


ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
_SDE_CURVATURE = -0.5


def step_orders(config: Mapping[str, Any], steps: int) -> list[int]:
    """The order of every step of a grid; lower at its end where the configuration says so."""
    highest = [config["solver_order"]] * steps
    if config["lower_order_final"] and steps < 15:
        highest[-2:] = [min(config["solver_order"], 2), 1][-steps:]
    if config["euler_at_final"]:
        highest[-1] = 1
    return highest


def _kind(algorithm: str) -> tuple[bool, bool]:
    """(whether x0 is integrated and not eps, whether the SDE is) of an algorithm's name."""
    return algorithm.endswith("++"), algorithm.startswith("sde")


def multistep(
    p: Trace, times: Sequence[Time], orders: Sequence[int], *, algorithm: str, solver_type: str
) -> Linear:
    """One of the algorithms over a grid, with the order of every step given."""
    data, sde = _kind(algorithm)
    if data:
        return dpm_multistep.data_prediction(
            p,
            times,
            orders,
            sde=sde,
            solver_type=solver_type,
            as_published=True,
            sde_curvature=_SDE_CURVATURE,
        )
    return dpm_multistep.noise_prediction(
        p, times, orders, sde=sde, solver_type=solver_type, as_published=True, through_x0=False
    )


def _weights(algorithm: str, t: Time, s: Time, midpoint: bool) -> Weights:
    data, sde = _kind(algorithm)
    if not data:
        return noise_weights(t, s, midpoint=midpoint, sde=sde)
    curvature = _SDE_CURVATURE if sde else 0.5
    return data_weights(t, s, midpoint=midpoint, eta=float(sde), curvature=curvature)


def singlestep(
    p: Trace, times: Sequence[Time], orders: Sequence[int], *, algorithm: str, solver_type: str
) -> Linear:
    """Steps in groups of orders 1, 2, …, as diffusers takes DPM-Solver's singlestep methods.

    Every step of a group goes from the state where the group began (Lu et al. 2022b, algorithm 1),
    so a later one replaces what the earlier ones reached. A run that begins inside a group begins a
    new one.
    """
    x, base = p.start, p.start
    group: list[tuple[Linear, Time]] = []  # predictions of the group, first first
    for (t, s), order in zip(zip(times, times[1:], strict=False), orders, strict=True):
        d0 = p.predict(x, t).x0 if _kind(algorithm)[0] else p.predict_eps(x, t)[1]
        if order == 1 or not group or any(q.log_snr == t.log_snr for _, q in group):
            # a point that comes twice begins a group too: there is no slope between equal points
            group, base = [], p.x()
        group = [*group, (d0, t)]
        first, begin = group[-min(order, len(group))]
        k = len(group)
        w = _weights(algorithm, begin, s, k == 2 and solver_type == "midpoint")
        x = w.x * base + w.scale * w.d0 * first
        h = step_size(begin, s)
        slopes = [(m - first) * (h / step_size(begin, q)) for m, q in group[1:]]
        if k == 2 or (k == 3 and solver_type == "midpoint"):
            x = x + w.scale * w.d1 * slopes[-1]
        elif k == 3:
            r1, r0 = (step_size(begin, q) / h for _, q in group[1:])
            x = x + w.scale * w.d1 * ((r0 * slopes[0] - r1 * slopes[1]) / (r0 - r1))
            x = x + w.scale * w.d2 * (2.0 * (slopes[1] - slopes[0]) / (r0 - r1))
        if w.z:
            x = x + w.z * p.noise()
        if k == 1:
            base = p.keep(base)
        group[-1] = (p.keep(d0), t)
    return x
