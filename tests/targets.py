"""Data with a denoiser in closed form, and the exact results that solvers must approach.

For data N(m, s²) the denoiser is x0 = m + alpha s²/V (x - alpha m) with V = alpha² s² + sigma². For
a mixture it is the mean of its parts' denoisers weighted by their responsibilities, which is not
linear. With rho = sigma/alpha the probability flow is d(x/alpha)/d ln rho = x/alpha - x0; for one
Gaussian x - alpha m grows with sqrt(V).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from fastdiff import Schedule, ops, prediction
from fastdiff.schedule import Time
from fastdiff.solvers import Plan, make_plan

SCHEDULES = {
    "vp": Schedule.linear(1000),
    "ve": Schedule.ve(1000, sigma_min=0.002, sigma_max=80.0),
    "flow": Schedule.flow(1000),
}


class Mixture(NamedTuple):
    """Σ w_k N(m_k, s_k²) over each element."""

    weights: tuple[float, ...] = (1.0,)
    means: tuple[float, ...] = (0.0,)
    stds: tuple[float, ...] = (0.5,)

    def x0(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """E[x0 | x]."""
        w, m, s = (np.array(v)[:, None] for v in self)
        flat = np.asarray(x).reshape(-1)
        total = alpha**2 * s**2 + sigma**2
        off = flat - alpha * m
        log_r = np.log(w) - 0.5 * np.log(total) - 0.5 * off**2 / total
        r = np.exp(log_r - log_r.max(axis=0))
        each = m + alpha * s**2 / total * off
        return ((r * each).sum(axis=0) / r.sum(axis=0)).reshape(np.shape(x))

    def output(self, x: Tensor, alpha: float, sigma: float, kind: str) -> Tensor:
        """Returns the output of the optimal network of this prediction type."""
        x0 = torch.from_numpy(self.x0(x.numpy(), alpha, sigma))
        return prediction.target(kind, x0, (x - alpha * x0) / sigma if sigma else x0, alpha, sigma)

    def flow(self, x: np.ndarray, t: Time, s: Time) -> np.ndarray:
        """Returns the probability flow from x at t to s, by an 8th-order Runge-Kutta to 1e-13."""

        def slope(u: float, scaled: np.ndarray) -> np.ndarray:
            point = SCHEDULES["ve"].at_log_snr(-2 * u)
            return scaled - self.x0(scaled, 1.0, point.sigma)

        span = (math.log(t.rho), math.log(s.rho))
        end = solve_ivp(slope, span, x / t.alpha, method="DOP853", rtol=1e-13, atol=1e-14)
        return s.alpha * end.y[:, -1]


GAUSSIAN = Mixture()
TWO = Mixture((0.4, 0.6), (-1.0, 0.8), (0.4, 0.6))


def levels(space: str, steps: int, *, short_start: bool = False) -> list[Time]:
    """Returns levels that are evenly spaced in log-SNR, from rho = 20 to 0.05.

    A multistep solver starts at first order, whose error of h² would hide its order. `short_start`
    adds two first steps of a thousandth of the others, which remove that error.
    """
    log_snr = list(np.linspace(-2 * math.log(20), -2 * math.log(0.05), steps + 1))
    if short_start:
        e = (log_snr[1] - log_snr[0]) * 1e-3
        log_snr = [log_snr[0] - 2 * e, log_snr[0] - e, *log_snr]
    return [SCHEDULES[space].at_log_snr(float(v)) for v in log_snr]


def follow(
    plan: Plan,
    x: Tensor,
    data: Mixture,
    *,
    kind: str = "v",
    noise: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Runs the plan's loop over the optimal network of `data`; noise [rows, B, 1] or None."""
    assert plan.levels is not None
    table, slots = torch.tensor(plan.table), torch.zeros(4, *x.shape, dtype=torch.float64)
    for k in range(len(plan)):
        out = data.output(x, *plan.levels[k], kind) if plan.column("network")[k] else None
        z = torch.zeros_like(x) if noise is None else noise[k]
        row = torch.full((x.shape[0],), k)
        x, slots = ops.reverse_step(
            x, out, table, row, slots=slots, noise=z, used=plan.used, backend=backend
        )
    return x


def plan_on(space: str, solver: str, times: list[Time], **options) -> Plan:
    return make_plan(
        SCHEDULES[space],
        solver=solver,
        steps=len(times) - 1,
        times=times,
        prediction_type="v",
        **options,
    )


def moments(
    space: str,
    solver: str,
    steps: int,
    tau: float | Callable[[float], float],
    /,
    std: float = 0.5,
    **options,
) -> tuple[float, float]:
    """Returns the relative errors of a run's gain on x_T and of its final variance, on N(0, std²).

    The reverse SDE with noise tau(rho) multiplies x in the mean by sqrt(V_s/V_t) e^-I, with I = ∫
    tau² rho/(std² + rho²) drho from rho_s to rho_t, and ends with variance V_s. A run is affine in
    state and draws: unit impulses propagate both without sampling error.
    """
    times = levels(space, steps)
    plan, (t, s) = plan_on(space, solver, times, **options), (times[0], times[-1])
    impulses = torch.cat([torch.zeros(len(plan), 1), torch.eye(len(plan))], dim=1)[
        ..., None
    ].double()
    x = torch.zeros(len(plan) + 1, 1, dtype=torch.float64)
    x[0] = 1.0
    end = follow(plan, x, Mixture((1.0,), (0.0,), (std,)), noise=impulses)[:, 0]
    before, after = (v.alpha**2 * std**2 + v.sigma**2 for v in (t, s))
    gain = math.sqrt(after / before) * math.exp(-forgotten(tau, t.rho, s.rho, std))
    variance = float(end[0] ** 2 * before + (end[1:] ** 2).sum())
    return abs(float(end[0]) / gain - 1), abs(variance / after - 1)


def forgotten(tau: float | Callable[[float], float], high: float, low: float, std: float) -> float:
    """Returns ∫ tau² rho/(std² + rho²) drho between two noise levels."""
    if not callable(tau):
        return 0.5 * tau**2 * math.log((std**2 + high**2) / (std**2 + low**2))
    found = quad(
        lambda u: tau(math.exp(u)) ** 2 / (1.0 + (std / math.exp(u)) ** 2),
        math.log(low),
        math.log(high),
        epsabs=1e-12,
        epsrel=1e-12,
    )
    return float(found[0])
