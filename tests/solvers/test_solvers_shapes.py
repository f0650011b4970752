"""Grids that are known from other programs, against their formulas written out here, scipy's
quantiles, and diffusers where it has the function.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np
import pytest

from fastdiff import Schedule
from fastdiff.solvers import make_plan
from fastdiff.solvers.grids import POINTS, SPACINGS, grid, timesteps
from fastdiff.solvers.shapes import beta_quantiles

SCHEDULE = Schedule.scaled_linear(1000)
STEPS = (1, 2, 3, 6, 7, 10, 20, 50)
LN_RHO = -0.5 * SCHEDULE.log_snr
NEW = ("simple", "ddim_uniform", "beta57", *POINTS)


def interpolated(positions: np.ndarray) -> np.ndarray:
    """Returns rho at positions between timesteps, linear in its logarithm."""
    return np.exp(np.interp(positions, np.arange(1000.0), LN_RHO))


def tangent(steps: int) -> list[float]:
    """bong_tangent as its author's parameters give it: two stages, each from its own ends."""
    total = steps + 2
    middle = int((total * 0.6 + total * 0.6) / 2)
    slope, pivot = 0.2 / (total / 40), int(total * 0.6)

    def stage(count: int, at: int, start: float, end: float) -> list[float]:
        curve = [(2 / math.pi * math.atan(-slope * (i - at)) + 1) / 2 for i in range(count)]
        return [(v - curve[-1]) / (curve[0] - curve[-1]) * (start - end) + end for v in curve]

    return [*stage(middle, pivot, 1.0, 0.5)[:-1], *stage(total - middle, pivot - middle, 0.5, 0.0)]


def quadratic(steps: int) -> list[float]:
    """linear_quadratic in the monomials of i, as it is published."""
    if steps == 1:
        return [1.0, 0.0]
    n, drop = steps // 2, 0.025
    rest = steps - n
    lost = n - drop * steps
    two, one = lost / (n * rest**2), drop / n - 2 * lost / rest**2
    fall = [i * drop / n if i < n else two * i * i + one * i + two * n * n for i in range(steps)]
    return [*(1.0 - v for v in fall), 0.0]


def kl(steps: int) -> np.ndarray:
    share = np.linspace(0, 1, steps)
    low, high = (math.atan(math.exp(LN_RHO[i])) for i in (0, -1))
    return np.tan(share * low + (1 - share) * high)


RHO: dict[str, Callable[[int], np.ndarray]] = {
    "simple": lambda n: np.exp(LN_RHO[[-(1 + int(i * (1000 / n))) for i in range(n)]]),
    "normal": lambda n: interpolated(np.linspace(999, 0, n)),
    "sgm_uniform": lambda n: interpolated(np.linspace(999, 0, n + 1)[:-1]),
    "kl_optimal": kl,
    "linear_quadratic": lambda n: np.array(quadratic(n)[:-1]) * math.exp(LN_RHO[-1]),
    "bong_tangent": lambda n: np.array(tangent(n)[:-1] if n > 1 else [1.0]) * math.exp(LN_RHO[-1]),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", RHO)
def test_levels(name: str, steps: int) -> None:
    got = [t.rho for t in grid(SCHEDULE, steps, name)]
    np.testing.assert_allclose(got, [*RHO[name](steps), 0.0], rtol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 50, 250, 500])
def test_ddim_uniform_is_the_range_of_the_first_implementation(steps: int) -> None:
    """range(0, T, T//n) + 1, where n divides T; elsewhere that has more than n points."""
    expected = [t + 1 for t in range(0, 1000, 1000 // steps)]
    assert timesteps(1000, steps, "ddim_uniform") == expected[::-1]


@pytest.mark.parametrize("a, b", [(0.5, 0.7), (0.6, 0.6), (2.0, 0.3), (1.0, 3.0)])
def test_quantiles_of_beta(a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the quantiles are scipy's")
    shares = np.concatenate([[0.0, 1e-6, 1 - 1e-6, 1.0], np.linspace(0.01, 0.99, 40)])
    expected = stats.beta.ppf(shares, a, b)
    np.testing.assert_allclose(beta_quantiles(shares, a, b), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("steps", STEPS)
def test_beta57(steps: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the quantiles are scipy's")
    expected = np.rint(stats.beta.ppf(1 - np.arange(steps) / steps, 0.5, 0.7) * 999)
    assert len(set(expected)) == steps, "no two of so few are the same"
    assert timesteps(1000, steps, "beta57") == expected.tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", STEPS)
def test_shares_of_a_flow_schedule_are_of_its_sigma(steps: int, shift: float) -> None:
    flow = Schedule.flow(1000, shift=shift)
    for name, formula in (("linear_quadratic", quadratic), ("bong_tangent", tangent)):
        if name == "bong_tangent" and steps == 1:
            continue
        got = [t.sigma for t in grid(flow, steps, name)]
        np.testing.assert_allclose(got, formula(steps), atol=1e-14)


@pytest.mark.parametrize("steps", [2, 3, 10, 50, 64])
def test_linear_quadratic_is_that_of_diffusers(steps: int) -> None:
    """The function of its pipelines of Mochi and LTX, for a flow schedule."""
    pytest.importorskip("diffusers", reason="diffusers is not installed here")
    try:
        mochi = importlib.import_module("diffusers.pipelines.mochi.pipeline_mochi")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers' pipeline of Mochi is not there: {error}")
    got = [t.sigma for t in grid(Schedule.flow(), steps, "linear_quadratic")[:-1]]
    np.testing.assert_allclose(got, mochi.linear_quadratic_schedule(steps, 0.025), atol=1e-14)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("steps", [1, 2, 3, 13, 99, 100])
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.linear(100),
        Schedule.linear(100).rescale_zero_terminal_snr(),
        Schedule.flow(100, shift=3.0),
        Schedule.ve(100),
        Schedule.karras(100),
    ],
    ids=lambda s: s.space + ("-zero" if s.alpha[-1] == 0 else ""),
)
def test_points_descend_from_the_last_timestep(name: str, steps: int, schedule: Schedule) -> None:
    """In every space, from pure noise too, unless the levels are shares of an infinite one."""
    try:
        times = grid(schedule, steps, name)
    except ValueError as error:
        assert name in ("linear_quadratic", "bong_tangent") and schedule.space == "vp"
        assert schedule.alpha[-1] == 0 and repr(name) in str(error)
        return
    rho = [t.rho for t in times]
    assert len(times) == steps + 1 and rho[-1] == 0
    assert all(a > b for a, b in zip(rho, rho[1:], strict=False))
    if name != "ddim_uniform":
        assert times[0].rho == schedule.at(99).rho


@pytest.mark.parametrize("name", NEW)
def test_they_are_spacings_of_every_door(name: str) -> None:
    assert name in SPACINGS
    plan = make_plan(SCHEDULE, solver="euler", steps=6, timestep_spacing=name)
    assert plan.info["timestep_spacing"] == name and plan.network_calls == 6
