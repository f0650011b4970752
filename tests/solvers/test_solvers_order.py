"""Orders of convergence on targets with a known flow (targets.py): deterministic solvers against
the probability flow of one Gaussian and of two, stochastic ones in the mean and variance that their
reverse SDE propagates.

The cases are the configurations that solvers are registered with.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from targets import GAUSSIAN, SCHEDULES, TWO, Mixture, follow, levels, moments, plan_on

from fastdiff.solvers import SOLVERS, Configuration

pytest.importorskip("scipy", reason="the exact flow is integrated by scipy")
STARTS = np.array([-1.3, -0.2, 0.3, 1.5])


def name_of(case: tuple[str, Configuration]) -> str:
    return f"{case[0]}{list(case[1].options.values()) or ''}"


CASES = [(s.name, c) for s in SOLVERS.values() for c in s.configurations if c.order is not None]
STRONG, WEAK = ([case for case in CASES if (case[1].tau != 0) == weak] for weak in (False, True))
# These follow no smooth equation from noise to data: a sampler of distilled networks, jumps back in
# time, and a run from data to noise (test_solvers_variance.py).
NOT_MEASURED = {"lcm", "repaint", "ddim_inverse"}


def test_every_solver_is_measured() -> None:
    assert {name for name, _ in CASES} == set(SOLVERS) - NOT_MEASURED
    assert {name for name, _ in STRONG} >= {n for n, s in SOLVERS.items() if not s.stochastic} - (
        NOT_MEASURED
    )
    for name, case in CASES:
        assert case.options or case.order == SOLVERS[name].order, name


@functools.cache
def exact(space: str, data: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Returns (states at the first level, the states to which the probability flow takes them)."""
    times = levels(space, 2)
    x = STARTS * math.hypot(times[0].alpha, times[0].sigma)
    return x, data.flow(x, times[0], times[-1])


def error(
    space: str, data: Mixture, solver: str, steps: int, short_start: bool = False, **options
) -> float:
    """Returns the largest error over the starts."""
    times = levels(space, steps, short_start=short_start)
    x, end = exact(space, data)
    if short_start:  # the run starts a little earlier
        x = data.flow(end, times[-1], times[0])
    got = follow(plan_on(space, solver, times, **options), torch.tensor(x)[:, None], data)
    return float(np.abs(got[:, 0].numpy() - end).max())


def slope_of(errors: list[float]) -> float:
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize(
    "space, data",
    [("vp", GAUSSIAN), ("ve", TWO), ("flow", TWO)],
    ids=["vp-gaussian", "ve-mixture", "flow-mixture"],
)
@pytest.mark.parametrize("case", STRONG, ids=name_of)
def test_order_of_convergence(case: tuple[str, Configuration], space: str, data: Mixture) -> None:
    solver, (options, order, _, short_start) = case
    errors = [
        error(space, data, solver, n, short_start, **options)
        for n in ((40, 80, 160) if solver in ("lms", "ipndm_v") or order > 3 else (20, 40, 80))
    ]
    assert slope_of(errors) > order - 0.25, errors
    assert errors[-1] < 0.05 / 4 ** (order - 1), errors


@pytest.mark.parametrize("solver", ["dpm3m", "dpm++3m"])
def test_the_published_third_order_is_second_order(solver: str) -> None:
    """It lacks half of the second derivative (see `exponential.differences`)."""
    errors = [error("vp", GAUSSIAN, solver, n, True, as_published=True) for n in (40, 80, 160)]
    assert 1.9 < slope_of(errors) < 2.3, errors


def test_the_flow_of_one_gaussian_is_known() -> None:
    """Tests the Runge-Kutta reference: the flow is x sqrt(V_s/V_t)."""
    times = levels("vp", 2)
    x, end = exact("vp", GAUSSIAN)
    before, after = (t.alpha**2 * 0.25 + t.sigma**2 for t in (times[0], times[-1]))
    np.testing.assert_allclose(end, x * math.sqrt(after / before), rtol=1e-11)


@pytest.mark.parametrize("space", SCHEDULES)
@pytest.mark.parametrize("case", WEAK, ids=name_of)
def test_weak_order_in_mean_and_variance(case: tuple[str, Configuration], space: str) -> None:
    solver, (options, order, tau, _) = case
    each = [moments(space, solver, n, tau, **options) for n in (40, 80, 160)]
    for errors in zip(*each, strict=True):
        # several solvers are exact in the mean here
        assert max(errors) < 1e-12 or slope_of(list(errors)) > order - 0.15, errors
        assert errors[-1] < (0.2, 0.01)[order - 1], errors
