"""Orders of convergence on targets with a known flow (targets.py): deterministic solvers against
the probability flow of one Gaussian and of two, stochastic ones in the mean and variance that their
reverse SDE propagates.

LCM, TCD, RePaint and DDPM discretise nothing and are left out (the last is measured all the same).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from targets import GAUSSIAN, SCHEDULES, TWO, Mixture, follow, levels, moments, plan_on

from fastdiff.solvers import SOLVERS

pytest.importorskip("scipy", reason="the exact flow is integrated by scipy")
STARTS = np.array([-1.3, -0.2, 0.3, 1.5])
FULL = {"lower_order_final": False}
ORDERS = [
    # solver, options, order, whether it needs an exact start to show it
    ("ddim", {}, 1, False),
    ("euler", {}, 1, False),
    ("flow_euler", {}, 1, False),
    ("heun", {}, 2, False),
    ("flow_heun", {}, 2, False),
    ("kdpm2", {}, 2, False),
    ("dpm1", {}, 1, False),
    ("dpm++1", {}, 1, False),
    ("dpm2m", {}, 2, False),
    ("dpm2m", {"solver_type": "heun"}, 2, False),
    ("dpm++2m", {}, 2, False),
    ("dpm++2m", {"solver_type": "heun"}, 2, False),
    ("dpm2s", {}, 2, False),
    ("dpm++2s", {}, 2, False),
    ("dpm3s", {}, 3, False),
    ("dpm++3s", {}, 3, False),
    ("dpm3m", {}, 3, True),
    ("dpm++3m", {}, 3, True),
    ("deis", {"order": 1}, 1, False),
    ("deis", {"order": 2}, 2, False),
    ("deis", {"order": 3}, 3, True),
    ("lms", {"order": 1}, 1, False),
    ("lms", {"order": 2}, 2, False),
    ("lms", {"order": 3}, 3, False),
    ("lms", {"order": 4}, 4, True),
    ("unipc", {"order": 1, **FULL}, 2, False),
    ("unipc", {"order": 2, **FULL}, 3, False),
    ("unipc", {"order": 3, **FULL}, 4, True),
    ("pndm", {}, 2, False),
    ("pndm", {"runge_kutta": True}, 2, False),
    ("pndm", {"improved_start": True}, 2, False),
    ("ipndm", {"order": 1}, 1, False),
    ("ipndm", {}, 2, False),
    ("sa", {"tau": 0.0, "predictor_order": 1, "corrector_order": 0}, 1, False),
    ("sa", {"tau": 0.0, "predictor_order": 2, "corrector_order": 0, **FULL}, 2, False),
    ("sa", {"tau": 0.0, "as_published": True, **FULL}, 2, False),
    ("sa", {"tau": 0.0, "predictor_order": 3, "corrector_order": 3, **FULL}, 3, True),
    ("sa", {"tau": 0.0, "predictor_order": 3, "corrector_order": 4, **FULL}, 4, True),
]


def test_every_deterministic_solver_is_here() -> None:
    assert {s.name for s in SOLVERS.values() if not s.stochastic} - {"ddim_inverse"} == {
        c[0] for c in ORDERS
    } - {"sa"}
    for solver, options, order, _ in ORDERS:
        if not options:
            assert SOLVERS[solver].order == order, solver


@functools.cache
def exact(space: str, data: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """(states at the first level, where the probability flow takes them)."""
    times = levels(space, 2)
    x = STARTS * math.hypot(times[0].alpha, times[0].sigma)
    return x, data.flow(x, times[0], times[-1])


def error(
    space: str, data: Mixture, solver: str, steps: int, short_start: bool = False, **options
) -> float:
    """The largest over the starts."""
    times = levels(space, steps, short_start=short_start)
    x, end = exact(space, data)
    if short_start:  # it begins a little earlier
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
@pytest.mark.parametrize(
    "case", ORDERS, ids=[f"{n}{list(o.values()) or ''}" for n, o, _, _ in ORDERS]
)
def test_order_of_convergence(case: tuple, space: str, data: Mixture) -> None:
    solver, options, order, short_start = case
    errors = [
        error(space, data, solver, n, short_start, **options)
        for n in ((40, 80, 160) if solver == "lms" or order > 3 else (20, 40, 80))
    ]
    assert slope_of(errors) > order - 0.25, errors
    assert errors[-1] < 0.05 / 4 ** (order - 1), errors


@pytest.mark.parametrize("solver", ["dpm3m", "dpm++3m"])
def test_the_published_third_order_is_second_order(solver: str) -> None:
    """Half of the second derivative is missing there, in the SDE's code too (see
    exponential.differences).
    """
    errors = [error("vp", GAUSSIAN, solver, n, True, as_published=True) for n in (40, 80, 160)]
    assert 1.9 < slope_of(errors) < 2.3, errors


def test_the_flow_of_one_gaussian_is_known() -> None:
    """The Runge-Kutta reference itself: x sqrt(V_s/V_t)."""
    times = levels("vp", 2)
    x, end = exact("vp", GAUSSIAN)
    before, after = (t.alpha**2 * 0.25 + t.sigma**2 for t in (times[0], times[-1]))
    np.testing.assert_allclose(end, x * math.sqrt(after / before), rtol=1e-11)


CHURN = math.sqrt(
    4.0 / math.log(400)
)  # the tau of s_churn = 4 on a grid even in ln rho from 20 to 0.05
WEAK = [
    # solver, options, tau, weak order
    ("ddpm", {}, 1.0, 1),
    ("ddim", {"eta": 1.0}, 1.0, 1),
    ("euler_ancestral", {}, 1.0, 1),
    ("kdpm2_ancestral", {}, 1.0, 1),
    ("euler_maruyama", {}, 1.0, 1),
    ("euler", {"s_churn": 4.0}, CHURN, 1),
    ("edm", {"s_churn": 4.0, "s_tmin": 0.0, "s_noise": 1.0}, CHURN, 1),
    ("dpm++2m_sde", {}, 1.0, 2),
    ("dpm++2m_sde", {"eta": 0.5}, 0.5**0.5, 2),
    ("dpm++3m_sde", {}, 1.0, 2),
    ("dpm++sde", {}, 1.0, 1),
    ("dpm++2s_ancestral", {}, 1.0, 1),
    ("sa", FULL, 1.0, 2),
    ("sa", {"tau": 0.6, "as_published": True, **FULL}, 0.6, 2),
    ("sa", {"predictor_order": 1, "corrector_order": 0}, 1.0, 1),
    ("sa", {"predictor_order": 3, "corrector_order": 4, **FULL}, 1.0, 2),
]


def test_every_stochastic_solver_is_here() -> None:
    assert {s.name for s in SOLVERS.values() if s.stochastic} - {"lcm", "tcd", "repaint"} <= {
        c[0] for c in WEAK
    }


@pytest.mark.parametrize("space", SCHEDULES)
@pytest.mark.parametrize(
    "solver, options, tau, order", WEAK, ids=[f"{n}{list(o.values()) or ''}" for n, o, _, _ in WEAK]
)
def test_weak_order_in_mean_and_variance(
    solver: str, options: dict, tau: float, order: int, space: str
) -> None:
    each = [moments(space, solver, n, tau, **options) for n in (40, 80, 160)]
    for errors in zip(*each, strict=True):
        # several solvers are exact in the mean here
        assert max(errors) < 1e-12 or slope_of(list(errors)) > order - 0.15, errors
        assert errors[-1] < (0.2, 0.01)[order - 1], errors
