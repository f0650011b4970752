"""Orders of convergence on Gaussian data, whose probability flow is known: x_s = x_t sqrt(V_s/V_t).

The grid is even in log-SNR from rho = 20 to rho = 0.05, so no step goes into clean data. Multistep solvers start at first
order, which leaves an error of h² however small the rest; two first steps that are a thousandth of the others take it away.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import Sampler, Schedule, ops
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.solvers.grids import SPACINGS, Time, grid

SCHEDULE = Schedule.linear(1000)
STD = 0.5


def levels(steps: int, *, short_start: bool = False) -> list[Time]:
    log_snr = list(np.linspace(-2 * math.log(20), -2 * math.log(0.05), steps + 1))
    if short_start:
        e = (log_snr[1] - log_snr[0]) * 1e-3
        log_snr = [log_snr[0] - 2 * e, log_snr[0] - e, *log_snr]
    return [SCHEDULE.at_log_snr(float(v)) for v in log_snr]


def run(solver: str, times: list[Time], noise: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """x at the end for x = 1 at the beginning; noise [rows, B, 1] of each row, else none."""
    plan = make_plan(SCHEDULE, solver=solver, steps=len(times) - 1, times=times, **options)
    batch = 1 if noise is None else noise.shape[1]
    x, table = torch.ones(batch, 1, dtype=torch.float64), torch.tensor(plan.table)
    slots = torch.zeros(4, batch, 1, dtype=torch.float64)
    for k in range(len(plan)):
        out = None
        if plan.column("network")[k]:
            alpha = 1 / plan.column("x0_x")[k]
            sigma = -plan.column("x0_out")[k] * alpha
            out = sigma * x / (alpha**2 * STD**2 + sigma**2)
        z = torch.zeros_like(x) if noise is None else noise[k]
        row = torch.full((batch,), k)
        x, slots = ops.reverse_step(x, out, table, row, slots=slots, noise=z, used=plan.used)
    return x


def error(solver: str, steps: int, *, short_start: bool = False, **options: Any) -> float:
    times = levels(steps, short_start=short_start)
    variance = [t.alpha**2 * STD**2 + t.sigma**2 for t in (times[0], times[-1])]
    return abs(float(run(solver, times, **options)) - math.sqrt(variance[1] / variance[0]))


ORDERS = [
    ("ddim", {}, 1), ("euler", {}, 1), ("dpm1", {}, 1), ("dpm++1", {}, 1), ("heun", {}, 2), ("kdpm2", {}, 2),
    ("dpm2m", {}, 2), ("dpm2m", {"solver_type": "heun"}, 2), ("dpm++2m", {}, 2), ("dpm++2m", {"solver_type": "heun"}, 2),
    ("dpm2s", {}, 2), ("dpm++2s", {}, 2), ("dpm3s", {}, 3), ("dpm++3s", {}, 3), ("deis", {"order": 1}, 1),
    ("deis", {"order": 2}, 2), ("lms", {"order": 1}, 1), ("lms", {"order": 2}, 2), ("lms", {"order": 3}, 3),
    ("unipc", {"order": 1, "lower_order_final": False}, 2), ("unipc", {"order": 2, "lower_order_final": False}, 3),
    ("pndm", {}, 2), ("pndm", {"runge_kutta": True}, 2), ("ipndm", {"order": 1}, 1), ("ipndm", {}, 1),
]  # fmt: skip


@pytest.mark.parametrize("solver, options, order", ORDERS, ids=[f"{n}{o or ''}" for n, o, _ in ORDERS])
def test_order_of_convergence(solver: str, options: dict, order: int) -> None:
    errors = [error(solver, n, **options) for n in (40, 80, 160)]
    slope = math.log2(errors[0] / errors[2]) / 2
    assert slope > order - 0.15, errors
    assert errors[2] < 0.01


@pytest.mark.parametrize("solver", ["dpm3m", "dpm++3m", "deis"])
def test_third_order_shows_after_an_exact_start(solver: str) -> None:
    errors = [error(solver, n, short_start=True) for n in (20, 40, 80)]
    assert math.log2(errors[0] / errors[2]) / 2 > 2.85, errors


@pytest.mark.parametrize("solver", ["dpm3m", "dpm++3m"])
def test_the_published_third_order_is_second_order(solver: str) -> None:
    """Half of the second derivative is missing there, in the SDE's code too (see exponential.differences)."""
    errors = [error(solver, n, short_start=True, as_published=True) for n in (40, 80, 160)]
    assert 1.9 < math.log2(errors[0] / errors[2]) / 2 < 2.3, errors


WEAK = [
    ("ddpm", {}, 0.06), ("ddim", {"eta": 1.0}, 0.06), ("euler_ancestral", {}, 0.06), ("kdpm2_ancestral", {}, 0.06),
    ("euler_maruyama", {}, 0.06), ("dpm++2m_sde", {}, 0.02), ("dpm++3m_sde", {}, 0.02), ("edm", {"s_churn": 20.0}, 0.02),
    ("euler", {"s_churn": 20.0}, 0.08),
]  # fmt: skip


@pytest.mark.parametrize("solver, options, limit", WEAK, ids=[n for n, _, _ in WEAK])
def test_stochastic_solvers_keep_the_variance(solver: str, options: dict, limit: float) -> None:
    """Mean gain and noise are affine in the draws: unit impulses propagate the variance without sampling error."""

    def wrong(steps: int) -> float:
        times = levels(steps)
        rows = len(make_plan(SCHEDULE, solver=solver, steps=steps, times=times, **options))
        impulses = torch.zeros(rows, rows + 1, 1, dtype=torch.float64)
        for k in range(rows):
            impulses[k, k + 1] = 1.0
        x = run(solver, times, impulses, **options)[:, 0]
        start, end = (t.alpha**2 * STD**2 + t.sigma**2 for t in (times[0], times[-1]))
        got = float(x[0] ** 2 * start + ((x[1:] - x[0]) ** 2).sum())
        return abs(got / end - 1)

    coarse, fine = wrong(40), wrong(160)
    assert fine < limit and fine < 0.4 * coarse, (coarse, fine)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_every_solver_on_every_grid_is_finite(solver: str, spacing: str, steps: int) -> None:
    """Plans with finite tables (Plan checks them), the right number of calls, and slots that suffice."""
    if steps == 1000 and spacing not in ("trailing", "karras"):
        pytest.skip("n = T is tried on two grids")
    plan = make_plan(SCHEDULE, solver=solver, steps=steps, timestep_spacing=spacing)
    calls = SOLVERS[solver].calls
    # the step into clean data takes one call
    assert plan.network_calls == calls * (steps - 1) + 1
    assert plan.stochastic == SOLVERS[solver].stochastic or steps <= 2
    assert plan.slots <= 4


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc", "heun", "euler_ancestral", "edm", "lcm"])
def test_samplers_of_new_solvers_repeat_alone_and_in_company(solver: str) -> None:
    sampler = Sampler(lambda x, t: torch.tanh(x) * 0.5, SCHEDULE, solver=solver, steps=7, timestep_spacing="karras")
    whole = sampler.sample((5, 3, 4), seed=3)
    assert whole.isfinite().all()
    assert torch.equal(sampler.sample((1, 3, 4), seed=3, sample_ids=[2])[0], whole[2])


def test_grids_descend_and_end_clean() -> None:
    for spacing in SPACINGS:
        for steps in (1, 2, 13, 50, 1000):
            times = grid(SCHEDULE, steps, spacing)
            rho = [t.rho for t in times]
            assert len(times) == steps + 1 and rho[-1] == 0
            assert all(a > b for a, b in zip(rho, rho[1:], strict=False)), (spacing, steps)
            assert all(abs(t.alpha**2 + t.sigma**2 - 1) < 1e-12 for t in times)
            assert all(0 <= t.t <= 999 for t in times[:-1])


def test_karras_grid_has_the_published_form() -> None:
    times = grid(SCHEDULE, 10, "karras")
    high, low = (math.exp(-0.5 * SCHEDULE.log_snr[i]) for i in (-1, 0))
    expected = [(high ** (1 / 7) + i / 9 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(10)]
    np.testing.assert_allclose([t.rho for t in times[:-1]], expected, rtol=1e-12)
