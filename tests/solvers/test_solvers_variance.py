"""Tests DDPM's variances on Gaussian data, RePaint's paths and moments, and DDIM's inversion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peers import learned, noise, start
from targets import Mixture, follow

from fastdiff import Schedule, ops
from fastdiff.solvers import make_plan
from fastdiff.solvers.repaint import resampling

SCHEDULE = Schedule.cosine(1000)
SPACES = {"vp": SCHEDULE, "ve": Schedule.ve(), "flow": Schedule.flow(shift=2.0)}


def _moments(plan, data: Mixture) -> tuple[float, float, float]:
    """Returns (offset, gain, variance of the noise) of a run, which is affine on Gaussian data."""
    rows = len(plan)
    impulses = torch.cat([torch.zeros(rows, 2), torch.eye(rows)], dim=1)[..., None].double()
    x = torch.zeros(rows + 2, 1, dtype=torch.float64)
    x[1] = 1.0
    end = follow(plan, x, data, noise=impulses)[:, 0]
    return float(end[0]), float(end[1] - end[0]), float(((end[2:] - end[0]) ** 2).sum())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_the_optimal_variance_is_exact_for_any_number_of_steps(
    std: float, steps: int, space: str
) -> None:
    """A run from the data's own q(x_T) gives the data's mean and variance, to rounding."""
    schedule, mean = SPACES[space], 0.7
    plan = make_plan(
        schedule,
        solver="ddpm",
        steps=steps,
        prediction_type="v",
        variance_type="optimal",
        data_variance=std**2,
    )
    offset, gain, added = _moments(plan, Mixture((1.0,), (mean,), (std,)))
    alpha, sigma = plan.levels[0]
    assert gain * alpha * mean + offset == pytest.approx(mean, abs=1e-10)
    assert gain**2 * (alpha**2 * std**2 + sigma**2) + added == pytest.approx(std**2, rel=1e-10)


def test_optimal_lies_between_the_fixed_variances_for_narrow_data() -> None:
    plans = [
        make_plan(SCHEDULE, solver="ddpm", steps=20, **options)
        for options in (
            {},
            {"variance_type": "optimal", "data_variance": 0.25},
            {"variance_type": "fixed_large"},
        )
    ]
    small, optimal, large = (plan.column("x.z")[:-2] for plan in plans)
    assert (small < optimal).all() and (optimal < large).all()
    assert plans[1].column("x.z")[19] > 0, "the last step has noise too"


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variances(variance_type: str) -> None:
    """The network's second half is the log-variance, or interpolates it between ln beta-tilde and
    ln beta (Nichol & Dhariwal 2021, eq. 15).

    For `learned`, diffusers takes it for the variance. improved-diffusion, which published these
    networks, takes it for the logarithm, as fastdiff does.
    """
    times = [SCHEDULE.at(600), SCHEDULE.at(300), SCHEDULE.at(10)]
    plan = make_plan(SCHEDULE, solver="ddpm", steps=2, times=times, variance_type=variance_type)
    fixed = make_plan(SCHEDULE, solver="ddpm", steps=2, times=times)
    x, v = start(), learned(start())[:, 3:]
    row = torch.zeros(2, dtype=torch.int64)
    got = ops.reverse_step(x, learned(x), torch.tensor(plan.table), row, seed=3, used=plan.used)
    mean = ops.reverse_step(
        x,
        learned(x)[:, :3],
        torch.tensor(fixed.table),
        row,
        noise=torch.zeros_like(x),
        used=fixed.used,
    )
    alpha_ts, beta = times[0].transition(times[1])
    small = beta * times[1].sigma ** 2 / times[0].sigma ** 2
    log_variance = (
        v
        if variance_type == "learned"
        else (v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(small)
    )
    expected = mean + torch.exp(0.5 * log_variance) * noise(0)  # type: ignore[operator]
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_the_resampling_path_is_the_published_one() -> None:
    """Lugmayr et al. 2022, appendix B: 250 steps with jumps of 10 at 24 points, ten visits of each:
    250 + 24·9·20 moves.
    """
    assert resampling(4, 1, 2) == [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4]
    assert resampling(5, 10, 3) == [0, 1, 2, 3, 4, 5], "too few steps for a jump"
    path = resampling(250, 10, 10)
    moves = np.diff(path)
    assert (
        (moves == 1).sum() + 10 * (moves == -10).sum() == 4570
        and path[-1] == 250
        and min(path) == 0
    )
    visits = {
        r: sum(1 for a, b in zip(path, path[1:], strict=False) if b == 250 - r and b > a)
        for r in (0, 10, 230, 240)
    }
    assert visits == {0: 10, 10: 10, 230: 10, 240: 1}


@pytest.mark.parametrize("space", SPACES)
def test_the_way_back_keeps_the_marginal(space: str) -> None:
    """Going back in time turns q(x_s) into q(x_t), in any space."""
    plan = make_plan(
        SPACES[space],
        solver="repaint",
        steps=30,
        prediction_type="v",
        jump_n_sample=2,
        jump_length=5,
    )
    back = np.flatnonzero(plan.column("network")[:-1] == 0)
    assert len(back) == 5
    for row in back:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = plan.levels[row], plan.levels[row + 1]
        on_x, on_z = plan.column("x.x")[row], plan.column("x.z")[row]
        assert sigma_t / alpha_t > sigma_s / alpha_s
        assert on_x * alpha_s == pytest.approx(alpha_t, rel=1e-13)
        assert on_x**2 * sigma_s**2 + on_z**2 == pytest.approx(sigma_t**2, rel=1e-13)
        assert (
            plan.column("noise_index")[row] == row
            and plan.table[row, plan.columns.index("x.x0")] == 0
        )


@pytest.mark.parametrize("space", ["vp", "flow"])
def test_inversion_is_undone_by_ddim(space: str) -> None:
    """It is undone to first order: twice the steps give half the error. The grid leaves out clean
    data and pure noise.
    """
    data = Mixture((0.4, 0.6), (-1.0, 0.8), (0.4, 0.6))
    x = torch.tensor([[-0.9], [0.1], [1.2]], dtype=torch.float64)

    def error(steps: int) -> float:
        log_snr = np.linspace(-6.0, 6.0, steps + 1)
        times = [SPACES[space].at_log_snr(float(v)) for v in log_snr]
        there, back = (
            make_plan(SPACES[space], solver=solver, steps=steps, times=times, prediction_type="v")
            for solver in ("ddim_inverse", "ddim")
        )
        assert tuple(there.levels[0]) == tuple(back.levels[-1]) and tuple(
            there.levels[-1]
        ) == tuple(back.levels[0])
        return float((follow(back, follow(there, x, data), data) - x).abs().max())

    errors = [error(n) for n in (50, 100, 200)]
    assert math.log2(errors[0] / errors[2]) / 2 > 0.85 and errors[2] < 0.02, errors
