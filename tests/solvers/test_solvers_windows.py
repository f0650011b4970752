"""sde_rows: rows in a window draw noise, and the others are the solver's with its noise off."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from targets import SCHEDULES, TWO, follow, levels, plan_on

from fastdiff import Sampler, Schedule, ops
from fastdiff.sampling.settings import merged
from fastdiff.solvers import SOLVERS, Plan, make_plan

FLOW, VP = Schedule.flow(1000, shift=3.0), Schedule.linear(1000)
NOISE: dict[str, dict[str, Any]] = {"ddim": {"eta": 1.0}, "euler": {"s_churn": 4.0}}
"""Options with noise, of solvers that have none by default."""
WINDOWED = sorted(name for name, s in SOLVERS.items() if s.noiseless)
CHURN = {"euler", "edm"}  # add noise before a step, so that the network is called at other points
STEPS = 12


def plan_of(solver: str, schedule: Schedule = VP, **options: Any) -> Plan:
    options = {"steps": STEPS, "prediction_type": "v", **NOISE.get(solver, {}), **options}
    return make_plan(schedule, solver=solver, **options)


def joints(plan: Plan, still: Plan) -> list[int]:
    """The rows before which no slot is alive in either plan, and those of plans with one memory."""
    one_call = len(plan) == STEPS
    return [
        r for r in range(len(plan) + 1) if one_call or (plan.enterable(r) and still.enterable(r))
    ]


def row_of(plan: Plan, row: int) -> tuple[Any, ...]:
    """A row, whatever slots its terms are in."""
    named = dict(zip(plan.columns, plan.table[row].tolist(), strict=True))
    slots = sorted(v for n, v in named.items() if re.search(r"(^|\.)s\d", n) and v)
    rest = {n: v for n, v in named.items() if not re.search(r"(^|\.)s\d", n) and v}
    rest.pop("noise_index", None)
    return (slots, rest)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("solver", sorted(set(WINDOWED) - CHURN - {"sa"}))
def test_rows_are_those_with_and_without_noise(solver: str, schedule: Schedule) -> None:
    noisy = plan_of(solver, schedule)
    still = plan_of(solver, schedule, **(SOLVERS[solver].noiseless or {}))
    ends = joints(noisy, still)
    assert len(ends) >= STEPS and noisy.stochastic and not still.stochastic
    for i, j in [(a, b) for a in ends for b in ends if a <= b][:: 5 if len(ends) > 8 else 1]:
        plan = plan_of(solver, schedule, sde_rows=(i, j))
        assert plan.info["sde_rows"] == [i, j] and len(plan) == len(noisy)
        assert np.array_equal(plan.levels[[i, j]], noisy.levels[[i, j]])  # type: ignore[index]
        for row in range(len(plan)):
            assert row_of(plan, row) == row_of(noisy if i <= row < j else still, row), row
        drawing = np.flatnonzero(plan.column("x.z"))
        assert all(i <= row < j for row in drawing)
    assert plan_of(solver, schedule, sde_rows=(0, len(noisy))).hash == noisy.hash
    assert plan_of(solver, schedule, sde_rows=(ends[2], ends[2])).hash == still.hash


def test_a_row_without_its_noise_is_another_step() -> None:
    """Zeroing the noise of the solver's own row would leave a wrong step of the flow."""
    noisy, windowed = plan_of("flow_sde", FLOW), plan_of("flow_sde", FLOW, sde_rows=(0, 4))
    assert abs(noisy.column("x.x")[6] - windowed.column("x.x")[6]) > 0.01
    euler = plan_of("flow_euler", FLOW)
    assert np.array_equal(windowed.table[4:], euler.table[4:])


def test_a_multistep_solver_remembers_across_the_window() -> None:
    """dpm++2m_sde by hand (Lu et al. 2022b, section 5), eta = 1 in rows 3 to 6 and 0 elsewhere."""
    times, i, j = levels("vp", 10), 3, 7
    plan = plan_on("vp", "dpm++2m_sde", times, sde_rows=(i, j))
    draws = torch.from_numpy(np.linspace(-1.5, 1.5, 20).reshape(10, 2, 1))
    x = np.array([[-0.7], [1.1]])
    got = follow(plan, torch.from_numpy(x.copy()), TWO, noise=draws)
    before = None
    for k, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        eta, h = float(i <= k < j), s.half_log_snr - t.half_log_snr
        x0 = TWO.x0(x, t.alpha, t.sigma)
        gain = s.alpha * -math.expm1(-(1 + eta) * h)
        following = s.sigma / t.sigma * math.exp(-eta * h) * x + gain * x0
        if before is not None:
            following = following + 0.5 * gain * (x0 - before[0]) * h / before[1]
        spread = s.sigma * math.sqrt(-math.expm1(-2 * eta * h))
        x, before = following + spread * draws[k].numpy(), (x0, h)
    np.testing.assert_allclose(got.numpy(), x, rtol=1e-11, atol=1e-12)


def test_marginals_are_those_of_the_flow_and_the_sde() -> None:
    """A run of 150 steps, of which 50 are stochastic, arrives at the data."""
    count = 40_000
    plan = make_plan(
        SCHEDULES["flow"], solver="flow_sde", steps=150, prediction_type="v", sde_rows=(40, 90)
    )
    start = ops.randn((count, 1), seed=5, dtype=torch.float64)
    draws = ops.randn((count, len(plan)), seed=6, stream=1, dtype=torch.float64)
    x = follow(plan, start, TWO, noise=draws.T[..., None].contiguous())[:, 0].numpy()
    w, m, s = (np.array(v) for v in TWO)
    variance = float(w @ (s**2 + m**2)) - float(w @ m) ** 2
    assert x.mean() == pytest.approx(float(w @ m), abs=5 * math.sqrt(variance / count) + 0.01)
    assert x.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / count) + 0.03)


REFUSED = [
    ("dpm++2m", {"sde_rows": (0, 2)}, "a solver whose noise can be turned off with sde_rows"),
    ("ddpm", {"sde_rows": (0, 2)}, "a solver whose noise can be turned off with sde_rows"),
    ("lcm", {"sde_rows": (0, 2)}, "a solver whose noise can be turned off with sde_rows"),
    ("ddim", {"sde_rows": (0, 2), "eta": 0.0}, "a plan that draws noise for sde_rows"),
    ("flow_sde", {"sde_rows": (0, 2), "noise_level": 0.0}, "a plan that draws noise"),
    ("flow_sde", {"sde_rows": (0, 13)}, "sde_rows (i, j) with 0 <= i <= j <= 12"),
    ("flow_sde", {"sde_rows": (3, 2)}, "sde_rows as two rows (i, j) with 0 <= i <= j or None"),
    ("flow_sde", {"sde_rows": (-1, 2)}, "sde_rows as two rows"),
    ("flow_sde", {"sde_rows": (1.5, 2)}, "sde_rows as two rows"),
    ("flow_sde", {"sde_rows": (0, 1, 2)}, "sde_rows as two rows"),
    ("flow_sde", {"sde_rows": 3}, "sde_rows as two rows"),
    ("flow_sde", {"sde_rows": "12"}, "sde_rows as two rows"),
    ("seeds2", {"sde_rows": (1, 4)}, "at two of the rows 0, 2, 4"),
    ("dpm++sde", {"sde_rows": (2, 5)}, "at two of the rows 0, 2, 4"),
    ("sa", {"sde_rows": (2, 5)}, "to begin and end where 'sa' remembers nothing"),
    ("euler", {"sde_rows": (2, 5), "s_churn": 4.0}, "a solver with the same rows"),
    ("edm", {"sde_rows": (4, 8)}, "to begin and end where 'edm' remembers nothing"),
]


@pytest.mark.parametrize("solver, options, said", REFUSED)
def test_what_is_refused(solver: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^fastdiff\.Sampler: expected .+, got .+\.$") as caught:
        plan_of(solver, **options)
    assert said in str(caught.value)


def test_what_a_solver_needs_not_remember_is_no_obstacle() -> None:
    """SA-Solver without its corrector remembers predictions alone."""
    plan = plan_of("sa", corrector_order=0, sde_rows=(2, 5))
    assert np.flatnonzero(plan.column("x.z")).tolist() == [2, 3, 4]


@pytest.mark.parametrize("solver", [name for name, s in SOLVERS.items() if "eta" in s.options])
def test_an_eta_of_zero_counts_for_every_solver(solver: str) -> None:
    """The sampler's eta has no value that means that none was passed."""
    settings: dict[str, Any] = {"solver": solver, "steps": 8, "prediction_type": "v"}
    for eta in ({}, {"eta": 0.0}, {"eta": 0}, {"eta": 0.5}):
        sampler = Sampler(lambda x, t: x, FLOW, **settings, **eta)
        assert sampler.plan.hash == make_plan(FLOW, **settings, **eta).hash, eta
    assert Sampler(lambda x, t: x, FLOW, solver="dpm++2m", prediction_type="v", eta=0.0).plan


class Still(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.5 * x)


@pytest.mark.parametrize("solver", ["flow_sde", "dpm++2m_sde", "er_sde"])
def test_a_sampler_with_a_window(solver: str) -> None:
    """Runs that start later have the rows of the whole run, with their noise."""
    sampler = Sampler(Still(), FLOW, solver=solver, steps=8, prediction_type="v", sde_rows=(2, 5))
    assert sampler.settings["sde_rows"] == (2, 5)
    states: list[torch.Tensor] = []
    sampler.sample((2, 3), seed=1, callback=lambda i, t, x, x0: states.append(x.clone()))
    for start in (1, 4, 6):
        plan, row = sampler._engine.plans.get(None, start, None)
        drawing = np.flatnonzero(plan.column("x.z")[row:])
        assert (drawing + start).tolist() == [k for k in (2, 3, 4) if k >= start]
        later = sampler.sample(x_T=states[start - 1], start=start, seed=1)
        if solver == "flow_sde":
            assert torch.equal(later, states[-1])
    with pytest.raises(ValueError, match="expected sde_rows .* <= 4, the rows of the plan"):
        sampler.sample((2, 3), seed=1, steps=4)
    with pytest.raises(ValueError, match="expected no settings of a plan with a ready plan"):
        Sampler(Still(), plan=sampler.plan, sde_rows=(0, 1))


def test_settings_of_a_folder_with_another_solver() -> None:
    settings = {"solver": "flow_sde", "steps": 8, "noise_level": 0.9, "sde_rows": [2, 5]}
    assert merged(settings, {"steps": 6})["sde_rows"] == [2, 5]
    assert merged(settings, {"solver": "flow_cps"}) == {
        "solver": "flow_cps",
        "steps": 8,
        "sde_rows": [2, 5],
    }
    assert merged(settings, {"solver": "dpm++2m"}) == {"solver": "dpm++2m", "steps": 8}
