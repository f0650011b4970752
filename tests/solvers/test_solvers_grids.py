"""Tests grids, and every solver on every grid: in all spaces, from pure noise, with few and many
steps.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from targets import TWO, follow

from fastdiff import Sampler, Schedule
from fastdiff.schedule import CLEAN
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.solvers.grids import AYS, SPACINGS, TIMESTEPS, grid, of_levels

SCHEDULE = Schedule.linear(1000)
ZERO = SCHEDULE.rescale_zero_terminal_snr()
SPACES = {
    "vp": SCHEDULE,
    "zero-snr": ZERO,
    "ve": Schedule.ve(),
    "karras": Schedule.karras(),
    "flow": Schedule.flow(shift=3.0),
}


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_on_every_grid_is_finite(solver: str) -> None:
    """The tables are finite (Plan checks that), with the right number of network calls and at most
    four slots.
    """
    for spacing, steps in [*itertools.product(SPACINGS, (1, 2, 3, 10)), ("trailing", 1000)]:
        plan = make_plan(SCHEDULE, solver=solver, steps=steps, timestep_spacing=spacing)
        assert plan.network_calls == SOLVERS[solver].network_calls(steps), (spacing, steps)
        assert plan.levels is not None
        with np.errstate(divide="ignore"):
            rho = plan.levels[:-1, 1] / plan.levels[:-1, 0]
        draws = solver != "edm" or ((rho >= 0.05) & (rho <= 50.0)).any()  # s_tmin and s_tmax
        assert plan.stochastic == (SOLVERS[solver].stochastic and draws) or steps <= 2
        assert plan.slots <= 4
        assert plan.levels.shape == (len(plan) + 1, 2) and np.isfinite(plan.levels).all()


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_every_solver_in_every_space(solver: str, name: str, steps: int) -> None:
    """Plans are finite, from pure noise (alpha = 0) too."""
    schedule = SPACES[name]
    plan = make_plan(schedule, solver=solver, steps=steps, prediction_type="v")
    assert plan.initial_std == (
        1.0 if schedule.space == "vp" or SOLVERS[solver].reverse else schedule.sigma[-1]
    )
    first, last = (
        (plan.levels[-1], plan.levels[0])
        if SOLVERS[solver].reverse
        else (plan.levels[0], plan.levels[-1])
    )
    assert tuple(first) == (schedule.alpha[-1], schedule.sigma[-1]) and tuple(last) == (1.0, 0.0)


@pytest.mark.parametrize(
    "solver", sorted(name for name, s in SOLVERS.items() if s.noiseless is not None)
)
@pytest.mark.parametrize("name", ["zero-snr", "flow"])
def test_solvers_are_right_from_pure_noise(solver: str, name: str) -> None:
    """alpha = 0 at the start: quantiles of pure noise arrive at those of the data, with an error
    that falls with the number of steps. Options leave out the noise of stochastic solvers.
    """
    x = np.array([-1.5, -0.5, 0.2, 1.0])
    quantile = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    axis = np.linspace(-6, 6, 200001)
    cdf = sum(
        w * 0.5 * (1 + np.vectorize(math.erf)((axis - m) / (s * math.sqrt(2))))
        for w, m, s in zip(*TWO, strict=True)
    )
    exact = np.interp(quantile, cdf, axis)

    def error(steps: int) -> float:
        plan = make_plan(
            SPACES[name],
            solver=solver,
            steps=steps,
            prediction_type="v",
            **(SOLVERS[solver].noiseless or {}),
        )
        return float(
            np.abs(follow(plan, torch.tensor(x)[:, None], TWO)[:, 0].numpy() - exact).max()
        )

    coarse, fine = error(15), error(120)
    assert fine < 0.02 and fine < 0.5 * coarse, (coarse, fine)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc", "heun", "euler_ancestral", "edm", "lcm"])
def test_a_sample_is_the_same_alone_and_in_a_batch(solver: str) -> None:
    sampler = Sampler(
        lambda x, t: torch.tanh(x) * 0.5,
        SCHEDULE,
        solver=solver,
        steps=7,
        timestep_spacing="karras",
    )
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


@pytest.mark.parametrize("spacing", TIMESTEPS)
def test_grids_of_continuous_schedules_need_no_whole_timesteps(spacing: str) -> None:
    times = grid(Schedule.flow(100, shift=2.0), 250, spacing)
    assert len(times) == 251 and all(a.rho > b.rho for a, b in zip(times, times[1:], strict=False))
    flow = Schedule.flow(1000)
    np.testing.assert_allclose(
        [t.sigma for t in grid(flow, 7, "trailing")], np.linspace(1, 0, 8), atol=1e-15
    )


def test_karras_grid_has_the_published_form() -> None:
    times = grid(SCHEDULE, 10, "karras")
    high, low = (math.exp(-0.5 * SCHEDULE.log_snr[i]) for i in (-1, 0))
    expected = [
        (high ** (1 / 7) + i / 9 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(10)
    ]
    np.testing.assert_allclose([t.rho for t in times[:-1]], expected, rtol=1e-12)


def test_lu_is_uniform_lambda_which_is_exponential() -> None:
    lu = [t.half_log_snr for t in grid(SCHEDULE, 10, "lu")[:-1]]
    np.testing.assert_allclose(np.diff(lu), (lu[-1] - lu[0]) / 9, rtol=1e-10)
    assert lu == [t.half_log_snr for t in grid(SCHEDULE, 10, "exponential")[:-1]]


def test_align_your_steps() -> None:
    """Ten steps give the published levels; other numbers interpolate them log-linearly."""
    diffusers = pytest.importorskip("diffusers")
    published = diffusers.schedulers.AysSchedules
    names = {
        "ays": "StableDiffusion",
        "ays_sdxl": "StableDiffusionXL",
        "ays_svd": "StableDiffusionVideo",
    }
    schedule = Schedule.scaled_linear(1000)
    for spacing, name in names.items():
        times = grid(schedule, 10, spacing)
        np.testing.assert_allclose([t.rho for t in times], published[f"{name}Sigmas"], rtol=1e-12)
        finer = [math.log(t.rho) for t in grid(schedule, 20, spacing)[:-1]]
        np.testing.assert_allclose(
            finer[::2], [math.log(t.rho) for t in times[:-1]], rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(
            np.diff(finer)[::2], np.diff(finer)[1::2].tolist() + [np.diff(finer)[18]], rtol=1e-9
        )
    np.testing.assert_allclose(
        [t.t for t in grid(schedule, 10, "ays")[:-1]], published["StableDiffusionTimesteps"], atol=8
    )
    assert set(AYS) == set(names)


def test_the_user_s_own_levels() -> None:
    times = of_levels(SCHEDULE, [10.0, 1.0, 0.1, 0.0])
    assert [round(t.rho, 12) for t in times] == [10.0, 1.0, 0.1, 0.0] and times[-1] == CLEAN
    flow = of_levels(Schedule.flow(), [1.0, 0.5])
    assert [t.sigma for t in flow] == [1.0, 0.5, 0.0] and flow[0].alpha == 0
    plan = make_plan(SCHEDULE, solver="ddim", steps=3, sigmas=[10.0, 1.0, 0.1])
    assert plan.network_calls == 3 and plan.info["sigmas"] == [10.0, 1.0, 0.1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_plan(SCHEDULE, solver="ddim", steps=3, timesteps=[900, 500, 500]),
        lambda: make_plan(SCHEDULE, solver="ddim", steps=3, sigmas=[1.0, 1.0]),
        lambda: make_plan(SCHEDULE, solver="ddim", steps=3, sigmas=[0.0]),
        lambda: make_plan(
            Schedule.flow(), solver="ddim", steps=3, sigmas=[14.6, 1.0], prediction_type="flow"
        ),
        lambda: make_plan(
            Schedule.flow(),
            solver="ddim",
            steps=3,
            timestep_spacing="karras",
            prediction_type="flow",
        ),
        lambda: make_plan(ZERO, solver="ddim", steps=3),
        lambda: make_plan(ZERO, solver="ddim", steps=3, prediction_type="score"),
        lambda: make_plan(SCHEDULE, solver="ddim_inverse", steps=3, prediction_type="x0"),
        lambda: make_plan(SCHEDULE, solver="sa", steps=3, predictor_order=5),
        lambda: make_plan(SCHEDULE, solver="repaint", steps=3, jump_length=0),
        lambda: make_plan(SCHEDULE, solver="ddpm", steps=3, variance_type="optimal"),
        lambda: make_plan(SCHEDULE, solver="ddpm", steps=3, data_variance=1.0),
        lambda: make_plan(SCHEDULE, solver="pndm", steps=3, runge_kutta=True, improved_start=True),
    ],
)
def test_refusals_are_one_sentence(make) -> None:
    with pytest.raises(ValueError, match=r"^fastdiff\.\w+: expected .+, got .+\.$"):
        make()
