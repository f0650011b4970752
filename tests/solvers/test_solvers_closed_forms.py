"""Exponential, multistep and Runge-Kutta solvers where the exact result has a closed form.

Predictions that do not depend on the state, but on the noise level alone, leave an integral that is
known: a solver of order k is exact for polynomials of degree k - 1 in its own variable, on any
grid. On Gaussian data the other solvers follow a recursion that is written here from the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from targets import SCHEDULES, Mixture, follow, moments, plan_on
from test_solvers_order import slope_of
from tolerances import CLOSED_FORM

from fastdiff import Schedule, ops, prediction
from fastdiff.schedule import Time
from fastdiff.solvers import SOLVERS, Plan, make_plan
from fastdiff.solvers.grids import grid
from fastdiff.solvers.tableaus import TABLEAUS

TOLERANCE = CLOSED_FORM["float64", 50]
Curve = Callable[[float], float]


def uneven(space: str, steps: int = 9) -> list[Time]:
    """Returns levels from rho = 8 to 0.1 whose steps in ln rho differ by up to a factor of 2."""
    widths = 1.0 + 0.35 * np.sin(np.arange(steps) * 1.9)
    at = np.concatenate([[0.0], np.cumsum(widths)]) / widths.sum()
    return [SCHEDULES[space].at_log_snr(-2 * v) for v in math.log(8) + at * math.log(0.1 / 8)]


def run(plan: Plan, x: float, x0: Curve) -> float:
    """Runs a plan without noise on a network whose prediction x0 is a function of rho alone."""
    assert plan.levels is not None
    state, table = torch.tensor([[x]], dtype=torch.float64), torch.tensor(plan.table)
    slots = torch.zeros(4, 1, 1, dtype=torch.float64)
    for k, (alpha, sigma) in enumerate(plan.levels[:-1].tolist()):
        clean = torch.full_like(state, x0(sigma / alpha))
        out = prediction.target("v", clean, (state - alpha * clean) / sigma, alpha, sigma)
        row, noise = torch.tensor([k]), torch.zeros_like(state)
        state, slots = ops.reverse_step(
            state, out, table, row, slots=slots, noise=noise, used=plan.used
        )
    return float(state)


def integral(f: Curve, low: float, high: float) -> float:
    """Returns ∫ f over [low, high] by Gauss' quadrature with 60 nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    middle, half = 0.5 * (high + low), 0.5 * (high - low)
    return half * sum(w * f(middle + half * v) for v, w in zip(nodes, weights, strict=True))


def polynomial(degree: int) -> Curve:
    return np.polynomial.Polynomial([0.7, -0.4, 0.3, 0.05][: degree + 1])


# solver, options, degree of x0 in lambda that it integrates exactly, tau of its noise. Multistep
# methods begin with a lower order, and are compared over the last step alone.
EXPONENTIAL: list[tuple[str, dict[str, Any], int, float]] = [
    ("res_2m", {}, 1, 0.0),
    ("res_2m_ancestral", {"eta": 0.0}, 1, 0.0),
    ("res_2s", {}, 1, 0.0),
    ("res_2s", {"c2": 0.3}, 1, 0.0),
    ("exp_heun", {}, 1, 0.0),
    ("res_3s", {}, 1, 0.0),
    ("res_3s", {"c2": 0.4, "c3": 0.9}, 1, 0.0),
    ("seeds2", {"solver_type": "phi_2"}, 1, 1.0),
    ("seeds2", {"solver_type": "phi_2", "eta": 0.25, "r": 0.7}, 1, 0.5),
    ("seeds2", {}, 0, 1.0),
    ("seeds3", {}, 1, 1.0),
    ("seeds3", {"eta": 0.0}, 1, 0.0),
    ("sa", {"pece": True, "predictor_order": 2, "lower_order_final": False}, 1, 1.0),
]


def last_step(name: str, options: dict[str, Any], space: str, x0: Curve) -> tuple[float, ...]:
    """Returns (state before the last step, state after it) and the levels of that step."""
    times = uneven(space)
    whole = plan_on(space, name, times, **options)
    calls = len(plan_on(space, name, times[:-1], **options))
    after = run(whole, 1.3, x0)
    # the rows of a plan do not depend on later points, but for orders that fall at its end
    before = run(plan_on(space, name, times[:-1], **options), 1.3, x0)
    np.testing.assert_array_equal(
        whole.column("t")[:calls], plan_on(space, name, times[:-1], **options).column("t")[:-1]
    )
    return before, after


@pytest.mark.parametrize("space", SCHEDULES)
@pytest.mark.parametrize("name, options, degree, tau", EXPONENTIAL, ids=str)
def test_exponential_integrators_are_exact_for_polynomials_in_lambda(
    name: str, options: dict[str, Any], degree: int, tau: float, space: str
) -> None:
    """x/sigma e^(tau² lambda) grows by (1 + tau²) ∫ e^((1 + tau²) lambda) x0 dlambda."""
    f, times = polynomial(degree), uneven(space)
    before, after = last_step(name, options, space, lambda rho: f(-math.log(rho)))
    t, s = times[-2:]
    rate = 1.0 + tau**2
    grown = integral(
        lambda u: rate * math.exp(rate * (u - s.half_log_snr)) * f(u),
        t.half_log_snr,
        s.half_log_snr,
    )
    decay = math.exp(-(tau**2) * (s.half_log_snr - t.half_log_snr))
    expected = s.sigma / t.sigma * decay * before + s.alpha * grown
    assert after == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


PHI: dict[str, Any] = {"the paper's": None, "flow": 0.0, "SDE": 1.0, "own": lambda rho: rho**1.5}


@pytest.mark.parametrize("space", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("phi", PHI)
def test_er_sde_is_exact_for_polynomials_in_rho(phi: str, order: int, space: str) -> None:
    """x/alpha is phi(rho_s) (x_t/(alpha_t phi(rho_t)) + ∫ x0 phi'/phi² drho)."""
    functions: dict[str, Curve] = {
        "the paper's": lambda rho: rho * (math.exp(rho**0.3) + 10.0),
        "flow": lambda rho: rho,
        "SDE": lambda rho: rho**2,
        "own": lambda rho: rho**1.5,
    }
    scale, f, times = functions[phi], polynomial(order - 1), uneven(space)
    before, after = last_step("er_sde", {"phi": PHI[phi], "order": order}, space, f)
    t, s = times[-2:]
    # ∫ x0 d(-1/phi) by parts, so that the derivative of phi is not needed
    slope = f.deriv()
    moved = f(s.rho) / scale(s.rho) - f(t.rho) / scale(t.rho)
    moved += integral(lambda rho: slope(rho) / scale(rho), s.rho, t.rho)
    expected = s.alpha * scale(s.rho) * (before / (t.alpha * scale(t.rho)) + moved)
    assert after == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


SLOPES = [
    ("gradient_estimation", {}, 0),
    ("heunpp2", {}, 0),
    *(("ipndm_v", {"order": k}, k - 1) for k in (1, 2, 3, 4)),
    ("ipndm_v", {"order": 2, "as_published": True}, 1),
    *(
        ("rk", {"tableau": name}, max(tableau.order - 1, 0))
        for name, tableau in TABLEAUS.items()
        if tableau.order < 5
    ),
    # of b Σ c^k = 1/(k + 1), k < 4, alone; its slopes are those of the trajectory
    ("rk", {"tableau": "dormand_prince"}, 3),
]


@pytest.mark.parametrize("space", SCHEDULES)
@pytest.mark.parametrize("name, options, degree", SLOPES, ids=str)
def test_solvers_in_rho_are_exact_for_polynomial_slopes(
    name: str, options: dict[str, Any], degree: int, space: str
) -> None:
    """dx/drho = f(rho) of a polynomial f gives x_s = x_t + ∫ f drho, whatever the state."""
    f, times = polynomial(degree), uneven(space)

    def after_steps(points: list[Time]) -> float:
        plan = plan_on(space, name, points, **options)
        assert plan.levels is not None
        x, table = torch.full((1, 1), 1.3, dtype=torch.float64), torch.tensor(plan.table)
        slots = torch.zeros(4, 1, 1, dtype=torch.float64)
        for k, (alpha, sigma) in enumerate(plan.levels[:-1].tolist()):
            eps = torch.full_like(x, f(sigma / alpha))
            out = prediction.target("v", (x - sigma * eps) / alpha, eps, alpha, sigma)
            row, noise = torch.tensor([k]), torch.zeros_like(x)
            x, slots = ops.reverse_step(
                x, out, table, row, slots=slots, noise=noise, used=plan.used
            )
        return float(x)

    before, after = after_steps(times[:-1]), after_steps(times)
    t, s = times[-2:]
    expected = s.alpha * (before / t.alpha + integral(f, t.rho, s.rho))
    assert after == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def gaussian_slope(x: float, rho: float, std: float = 0.5) -> float:
    """d(x/alpha)/drho on N(0, std²)."""
    return rho * x / (std**2 + rho**2)


def by_gradient_estimation(x: float, rho: list[float], gamma: float) -> float:
    before = None
    for a, b in zip(rho, rho[1:], strict=False):
        d = gaussian_slope(x, a)
        mixed = d if before is None else gamma * d + (1 - gamma) * before
        x, before = x + (b - a) * mixed, d
    return x


def by_heunpp2(x: float, rho: list[float]) -> float:
    for i in range(len(rho) - 1):
        a, b = rho[i], rho[i + 1]
        d = gaussian_slope(x, a)
        y = x + (b - a) * d
        if i == len(rho) - 2:
            x = y
        elif i == len(rho) - 3:
            w = b / (2 * rho[0])
            x = x + (b - a) * ((1 - w) * d + w * gaussian_slope(y, b))
        else:
            c = rho[i + 2]
            e = gaussian_slope(y, b)
            g = gaussian_slope(y + (c - b) * e, c)
            w, v = b / (3 * rho[0]), c / (3 * rho[0])
            x = x + (b - a) * ((1 - w - v) * d + w * e + v * g)
    return x


RECURSIONS: dict[str, tuple[str, dict[str, Any], Callable[[float, list[float]], float]]] = {
    "gradient estimation": (
        "gradient_estimation",
        {},
        lambda x, rho: by_gradient_estimation(x, rho, 2.0),
    ),
    "gradient estimation, gamma 3": (
        "gradient_estimation",
        {"gamma": 3.0},
        lambda x, rho: by_gradient_estimation(x, rho, 3.0),
    ),
    "heun++": ("heunpp2", {}, by_heunpp2),
}


@pytest.mark.parametrize("space", SCHEDULES)
@pytest.mark.parametrize("name", RECURSIONS)
def test_mixed_slopes_on_gaussian_data(name: str, space: str) -> None:
    solver, options, recursion = RECURSIONS[name]
    times = uneven(space)
    got = follow(
        plan_on(space, solver, times, **options),
        torch.full((1, 1), 1.3, dtype=torch.float64),
        Mixture(),
    )
    expected = times[-1].alpha * recursion(1.3 / times[0].alpha, [t.rho for t in times])
    assert float(got) == pytest.approx(expected, rel=TOLERANCE)


def published_weights(h: float, h1: float, h2: float, h3: float) -> list[float]:
    """Returns the weights of the published code at order 4, with its slips."""
    second = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    third = (1 - h / (3 * (h + h1))) / 2
    third += (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    third *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    ratio, far = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
    return [
        1 + h / h1 / 2 + second + third,
        -h / h1 / 2 - (1 + ratio) * second - (1 + ratio + far) * third,
        ratio * second + (ratio + far * (1 + h2 / h3)) * third,
        -far * ratio * third,
    ]


def test_ipndm_v_as_published() -> None:
    """In one step with three slopes behind it; the plan's weights are those of eps, in VE."""
    times = uneven("ve", 4)
    plan = make_plan(
        SCHEDULES["ve"],
        solver="ipndm_v",
        steps=4,
        times=times,
        prediction_type="epsilon",
        as_published=True,
    )
    rho = [t.rho for t in times]
    steps = [b - a for a, b in zip(rho, rho[1:], strict=False)]
    table, slots = torch.tensor(plan.table), torch.zeros(4, 5, 1, dtype=torch.float64)
    x = torch.zeros(5, 1, dtype=torch.float64)
    for k in range(4):  # eps is 1 in sample k at call k, and 0 elsewhere
        eps = torch.zeros_like(x)
        eps[k] = 1.0
        if k == 3:
            x = torch.zeros_like(x)
        x, slots = ops.reverse_step(x, eps, table, torch.full((5,), k), slots=slots, used=plan.used)
    expected = [steps[-1] * w for w in published_weights(*reversed(steps))]
    np.testing.assert_allclose(x[:4, 0].flip(0).numpy(), expected, rtol=1e-12)
    assert abs(sum(published_weights(*reversed(steps))) - 1) > 1e-4


@pytest.mark.parametrize(
    "one, options, other, others",
    [
        ("res_2s", {"c2": 1.0}, "exp_heun", {}),
        ("seeds2", {"eta": 0.0, "r": 1.0, "solver_type": "phi_2"}, "exp_heun", {}),
        ("seeds2", {"eta": 0.0}, "dpm++2s", {}),
        ("seeds2", {}, "dpm++sde", {}),
        ("seeds2", {"r": 0.3}, "dpm++sde", {"r": 0.3}),
        ("seeds3", {"eta": 0.0}, "dpm++3s", {}),
        ("res_2m", {}, "dpm++2m", {"solver_type": "heun"}),
        ("ipndm_v", {}, "lms", {}),
        ("ipndm_v", {"order": 2}, "lms", {"order": 2}),
        ("er_sde", {"phi": 0.0, "order": 1}, "euler", {}),
        ("er_sde", {"phi": 1.0, "order": 1}, "ddim", {"eta": 1.0}),
        ("rk", {"tableau": "heun"}, "heun", {}),
        ("rk", {"tableau": "heun", "variable": "flow"}, "flow_heun", {}),
        ("rk", {"tableau": "euler"}, "ddim", {}),
        ("sa", {"pece": True, "corrector_order": 0}, "sa", {"corrector_order": 0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_solvers_that_are_others_with_certain_options(
    one: str, options: dict[str, Any], other: str, others: dict[str, Any], spacing: str
) -> None:
    """Equal results, with the same draws; ipndm_v's step into clean data is another than lms's."""
    times = grid(Schedule.linear(1000), 8, spacing)
    if one == "ipndm_v":
        times = times[:-1]
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
    data = Mixture((0.4, 0.6), (-1.0, 0.8), (0.4, 0.6))
    ends = []
    for solver, given in ((one, options), (other, others)):
        plan = make_plan(
            Schedule.linear(1000),
            solver=solver,
            steps=8,
            times=times,
            prediction_type="v",
            **given,
        )
        noise = ops.randn((len(plan), 6, 1), seed=5, dtype=torch.float64)
        ends.append(follow(plan, x, data, noise=noise))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_the_published_er_sde_keeps_the_moments_of_its_own_sde() -> None:
    """With phi = rho (e^(rho^0.3) + 10): the gain on x_T is exp(-∫ q rho²/(std² + rho²) dlnrho),
    q = dlnphi/dlnrho, and the variance that of the data.
    """

    def q(rho: float) -> float:
        grown = math.exp(rho**0.3)
        return 1.0 + 0.3 * rho**0.3 * grown / (grown + 10.0)

    std, low, high = 0.5, 0.05, 20.0
    exponent = integral(
        lambda u: q(math.exp(u)) * math.exp(2 * u) / (std**2 + math.exp(2 * u)),
        math.log(low),
        math.log(high),
    )
    # `moments` compares with the gain of constant noise tau; 0 is the probability flow
    flow = 0.5 * math.log((std**2 + low**2) / (std**2 + high**2))
    ratio = math.exp(-exponent - flow)
    for order, expected in ((1, 1), (2, 2), (3, 2)):
        each = [moments("ve", "er_sde", n, 0.0, order=order) for n in (40, 80, 160)]
        gains = [abs((1 - error) / ratio - 1) for error, _ in each]
        assert slope_of(gains) > expected - 0.25 and gains[-1] < 0.01, gains
        assert each[-1][1] < 0.02


def dense(stages: int) -> tuple[list[list[float]], list[float]]:
    """A tableau without zeros, whose states span as much as its number of stages allows."""
    random = np.random.default_rng(stages)
    rows = [random.uniform(0.1, 1.0, i) for i in range(stages)]
    a = [(row / row.sum() * i / stages).tolist() if i else [] for i, row in enumerate(rows)]
    b = random.uniform(0.1, 1.0, stages)
    return a, (b / b.sum()).tolist()


@pytest.mark.parametrize("stages", range(1, 10))
def test_nine_stages_fit_into_the_slots(stages: int) -> None:
    """The rows give the step that the tableau says, computed here directly in VE on a mixture."""
    a, b = dense(stages)
    times, data = uneven("ve", 3), Mixture((0.4, 0.6), (-1.0, 0.8), (0.4, 0.6))
    plan = plan_on("ve", "rk", times, tableau=(a, b))
    assert plan.slots == min(stages // 2, 4)
    x = np.array([[-1.3], [0.4], [2.0]])
    got = follow(plan, torch.tensor(x), data)
    for t, s in zip(times, times[1:], strict=False):
        h, k = s.rho - t.rho, []
        for row in a:
            rho = t.rho + sum(row) * h
            y = x + h * sum((w * v for w, v in zip(row, k, strict=True)), np.zeros_like(x))
            k.append((y - data.x0(y, 1.0, rho)) / rho)
        x = x + h * sum(w * v for w, v in zip(b, k, strict=True))
    np.testing.assert_allclose(got.numpy(), x, rtol=1e-11)


def test_a_tableau_that_needs_more_than_the_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="remembers at most 4 tensors .+ got one that needs 5"):
        make_plan(Schedule.linear(1000), solver="rk", steps=5, tableau=dense(10))


@pytest.mark.parametrize("solver", ["res_2m_ancestral", "seeds2", "seeds3", "er_sde"])
def test_without_noise_nothing_is_drawn(solver: str) -> None:
    plan = make_plan(Schedule.linear(1000), solver=solver, steps=6, s_noise=0.0)
    assert not plan.stochastic and SOLVERS[solver].stochastic
