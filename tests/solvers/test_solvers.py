"""Tests solvers on Gaussian and delta data with closed forms, the tracer's slots, and plans."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gaussian import Gaussian, ddim_gain, ddim_gain_by_angles, ddpm_moments
from tolerances import CLOSED_FORM

from fastdiff import Sampler, Schedule, ops
from fastdiff.solvers import SOLVERS, Linear, Plan, Trace, make_plan
from fastdiff.solvers.grids import Time, grid, timesteps
from fastdiff.table import INDEX

SCHEDULE = Schedule.linear(1000)
STEPS = (10, 50, 1000)
DTYPES = (torch.float64, torch.float32)


def _close(got: float, expected: float, dtype: torch.dtype, steps: int) -> None:
    limit = CLOSED_FORM[str(dtype).removeprefix("torch."), steps]
    assert abs(got - expected) <= limit * max(1.0, abs(expected)), f"{got} against {expected}"


def _visited(sampler: Sampler) -> list[int]:
    return [int(t) for t in sampler.plan.column("t")[:-1]]


def _affine(sampler: Sampler, dtype: torch.dtype) -> tuple[float, float, float]:
    """Returns (offset, gain on x_T, variance added by noise) of a sampler that acts affinely on
    scalars.

    A batch has one element per row, in which a unit impulse replaces the noise of that row, so the
    result has no sampling error.
    """
    plan, rows = sampler.plan, len(sampler.plan)
    batch = rows + 2  # x_T = 0; x_T = 1; x_T = 0 with an impulse at row k
    x = torch.zeros(batch, 1, dtype=dtype)
    x[1] = 1.0
    table = torch.tensor(plan.table)
    for k in range(rows):
        noise = torch.zeros(batch, 1, dtype=dtype)
        noise[2 + k] = 1.0
        t = torch.full((batch,), int(plan.column("t")[k]))
        row = torch.full((batch,), k)
        x = ops.reverse_step(x, sampler.model(x, t), table, row, noise=noise, used=plan.used)
    offset = float(x[0])
    return offset, float(x[1]) - offset, float(((x[2:] - x[0]).double() ** 2).sum())


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_multiplies_by_the_product_of_cosines(kind: str, steps: int) -> None:
    sampler = Sampler(
        Gaussian(SCHEDULE, kind), SCHEDULE, solver="ddim", steps=steps, prediction_type=kind
    )
    x = sampler.sample(x_T=torch.ones(1, 1, dtype=torch.float64), seed=0)
    _close(float(x), ddim_gain_by_angles(SCHEDULE, _visited(sampler)), torch.float64, steps)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("std", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_on_gaussian_data(steps: int, dtype: torch.dtype, std: float, spacing: str) -> None:
    sampler = Sampler(
        Gaussian(SCHEDULE, std=std), SCHEDULE, solver="ddim", steps=steps, timestep_spacing=spacing
    )
    x = sampler.sample(x_T=torch.ones(1, 1, dtype=dtype), seed=0)
    assert x.dtype == dtype
    _close(float(x), ddim_gain(SCHEDULE, _visited(sampler), std), dtype, steps)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_on_gaussian_data(steps: int, dtype: torch.dtype, variance_type: str) -> None:
    sampler = Sampler(
        Gaussian(SCHEDULE), SCHEDULE, solver="ddpm", steps=steps, variance_type=variance_type
    )
    offset, gain, variance = _affine(sampler, dtype)
    expected_gain, expected_variance = ddpm_moments(SCHEDULE, _visited(sampler), variance_type)
    assert offset == 0
    _close(gain, expected_gain, dtype, steps)
    _close(variance, expected_variance, dtype, steps)


def test_fixed_large_is_stationary_on_standard_normal_data() -> None:
    """Variance 1 stays 1 in every step with noise; the last step, without noise, gives alpha²."""
    sampler = Sampler(
        Gaussian(SCHEDULE), SCHEDULE, solver="ddpm", steps=50, variance_type="fixed_large"
    )
    _, gain, variance = _affine(sampler, torch.float64)
    last = SCHEDULE.alphas_cumprod[_visited(sampler)[-1]]
    assert gain**2 + variance == pytest.approx(last, abs=1e-12)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_delta_data_is_hit_exactly(solver: str, steps: int) -> None:
    model = Gaussian(SCHEDULE, "x0", mean=0.7, std=0.0)
    x = Sampler(model, SCHEDULE, solver=solver, steps=steps, prediction_type="x0").sample(
        (4, 3), seed=1
    )
    assert torch.equal(x, torch.full((4, 3), 0.7))


def test_ddim_with_eta_one_is_ddpm() -> None:
    model = Gaussian(SCHEDULE, std=0.5)
    a = Sampler(model, SCHEDULE, solver="ddim", eta=1.0, steps=20).sample(
        (8, 5), seed=3, dtype=torch.float64
    )
    b = Sampler(model, SCHEDULE, solver="ddpm", steps=20).sample(
        (8, 5), seed=3, dtype=torch.float64
    )
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_clipping_holds_x0() -> None:
    model = Gaussian(SCHEDULE, mean=3.0, std=0.1)
    seen: list[float] = []
    sampler = Sampler(model, SCHEDULE, solver="ddpm", steps=10, clip_range=1.0)
    x = sampler.sample(
        (4, 6), seed=0, callback=lambda i, t, x, x0: seen.append(float(x0.abs().max()))
    )
    assert len(seen) == 10 and max(seen) == 1.0 and float(x.abs().max()) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 13, 30, 64, 100, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_grids_descend_inside_the_schedule(spacing: str, steps: int) -> None:
    t = timesteps(1000, steps, spacing)
    assert (
        len(t) == steps
        and all(a > b for a, b in zip(t, t[1:], strict=False))
        and 0 <= t[-1]
        and t[0] <= 999
    )
    if spacing == "trailing" or (spacing == "linspace" and steps > 1):
        assert t[0] == 999
    if spacing == "leading":
        assert t[-1] == 0
    times = grid(SCHEDULE, steps, spacing)
    assert times[-1].alpha == 1 and times[-1].sigma == 0


def test_transition_composes_to_the_marginal() -> None:
    """q(x_t | x_s) after q(x_s | x0) is q(x_t | x0), in mean and variance."""
    times = grid(SCHEDULE, 1000, "trailing")
    for t, s in zip(times, times[1:], strict=False):
        alpha_ts, variance_ts = t.transition(s)
        assert alpha_ts * s.alpha == pytest.approx(t.alpha, rel=1e-14)
        assert alpha_ts**2 * s.sigma**2 + variance_ts == pytest.approx(t.sigma**2, rel=1e-13)


def _two_slot_solver(p: Trace, times: list[Time]) -> Linear:
    """Extrapolates x0 to second order from two slots, which are reused; the first row has none."""
    x, older = p.start, None
    for t, s in zip(times, times[1:], strict=False):
        x0, eps, _ = p.predict(x, t)
        x = s.alpha * x0 + s.sigma * eps
        if older is not None:
            x = x + 0.25 * (x0 - older)
        older = p.keep(x0)
    return x


def test_remembered_terms_share_slots() -> None:
    times = grid(SCHEDULE, 6, "trailing")
    trace = Trace("epsilon", Schedule.linear(1000))
    plan = Plan(trace.table(_two_slot_solver(trace, times)))
    assert plan.slots == 1, "each term dies when the next is kept, so one slot serves them all"
    assert plan.column("s1.x0").tolist() == [1.0] * 5 + [
        0.0,
        0.0,
    ], "the last term is never read, so never written"
    # against the same recursion carried out directly
    model, table = Gaussian(SCHEDULE, std=0.5), torch.tensor(plan.table)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3)
    direct, older = x.clone(), None
    slots = torch.full((1, 4, 3), torch.nan, dtype=torch.float64)
    for k, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        index = torch.full((4,), int(t.t))
        x, slots = ops.reverse_step(
            x, model(x, index), table, torch.full((4,), k), slots=slots, used=plan.used
        )
        eps = model(direct, index)
        x0 = (direct - t.sigma * eps) / t.alpha
        following = s.alpha * x0 + s.sigma * eps
        if older is not None:
            following = following + 0.25 * (x0 - older)
        direct, older = following, x0
        torch.testing.assert_close(x, direct, rtol=1e-12, atol=1e-12)


def test_a_forgotten_term_is_refused() -> None:
    times = grid(SCHEDULE, 2, "trailing")
    trace = Trace("epsilon", Schedule.linear(1000))
    first, _, _ = trace.predict(trace.start, times[0])
    trace.predict(trace.x(), times[1])
    with pytest.raises(
        ValueError, match=r"expected terms of row 1, got x0 of row 0\. Remember it with keep\(\)\."
    ):
        trace.table(first)


def test_linear_terms() -> None:
    a, b = Linear({("x", 0): 2.0}), Linear({("z", 0): 1.0})
    assert ((a + b) / 2 - 3 * a).terms == {("x", 0): -5.0, ("z", 0): 0.5}
    assert (a - a).terms == {}


def test_plan_prints_its_formulas_and_hashes_its_table() -> None:
    plan = make_plan(SCHEDULE, solver="ddim", steps=3, eta=0.5, clip_range=1.0)
    lines = str(plan).splitlines()
    assert (
        len(lines) == 5
        and lines[0].startswith("solver ddim, eta 0.5")
        and plan.hash[:12] in lines[0]
    )
    c = plan.table[1]
    assert (
        lines[3].split()
        == (
            f"1 666 {c[INDEX['x0_x']]:+.6g} x {c[INDEX['x0_out']]:+.6g} out, |x0| <= 1 "
            f"{c[INDEX['x.x0']]:+.6g} x0 {c[INDEX['x.out']]:+.6g} out {c[INDEX['x.z']]:+.6g} z1"
        ).split()
    )
    assert plan.network_calls == len(plan) == 3 and plan.stochastic
    assert plan.hash == make_plan(SCHEDULE, solver="ddim", steps=3, eta=0.5, clip_range=1.0).hash
    assert plan.hash != make_plan(SCHEDULE, solver="ddim", steps=3, eta=0.25, clip_range=1.0).hash
    assert not make_plan(SCHEDULE, solver="ddim", steps=3).stochastic


def test_plans_close_with_the_identity() -> None:
    plan = make_plan(SCHEDULE, solver="ddpm", steps=4)
    last = plan.table[-1]
    assert last[INDEX["next"]] == 4 and last[INDEX["x.x"]] == 1 and np.count_nonzero(last) == 3
    x = torch.randn(2, 3)
    same = ops.reverse_step(
        x, None, torch.tensor(plan.table), torch.tensor([4, 4]), seed=0, used=plan.used
    )
    assert torch.equal(same, x)  # type: ignore[arg-type]


def test_ddpm_coefficients_are_those_of_the_paper() -> None:
    """At full resolution they are those of Ho et al. 2020, eq. 7, as printed there."""
    plan = make_plan(SCHEDULE, solver="ddpm", steps=1000)
    beta, abar = SCHEDULE.betas, SCHEDULE.alphas_cumprod
    for k in (0, 500, 900, 998):
        t = 999 - k
        assert plan.column("x.x0")[k] == pytest.approx(
            math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t]), rel=1e-10
        )
        assert plan.column("x.x")[k] == pytest.approx(
            math.sqrt(1 - beta[t]) * (1 - abar[t - 1]) / (1 - abar[t]), rel=1e-10
        )
        assert plan.column("x.z")[k] ** 2 == pytest.approx(
            (1 - abar[t - 1]) / (1 - abar[t]) * beta[t], rel=1e-10
        )


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_run_may_start_where_nothing_is_remembered(solver: str) -> None:
    """By the definition: no later row reads a slot that no row of the run has written."""
    flow = solver.startswith("flow")
    plan = make_plan(
        Schedule.flow(1000) if flow else SCHEDULE,
        solver=solver,
        steps=12,
        prediction_type="flow" if flow else "v",
    )

    def enterable(start: int) -> bool:
        written: set[int] = set()
        for row in plan.table[start:-1]:
            named = {n: v for n, v in zip(plan.columns, row, strict=True) if v}
            read = {i for i in range(1, 5) if any(n.endswith(f".s{i}") for n in named)}
            if read - written:
                return False
            written |= {i for i in range(1, 5) if any(n.startswith(f"s{i}.") for n in named)}
        return True

    rows = range(len(plan) + 1)
    assert [plan.enterable(row) for row in rows] == [enterable(row) for row in rows]
    assert plan.enterable(0) and plan.enterable(len(plan))
