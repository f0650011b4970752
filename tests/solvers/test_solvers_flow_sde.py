"""Rollout solvers: their rows against the papers' formulas, and the marginals that they keep.

On Gaussian data with the exact network a row is affine in x and in its draw, so the mean and the
variance before each row follow in closed form, without sampling error.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from targets import SCHEDULES, TWO, Mixture, follow, levels, plan_on

from fastdiff import Schedule, ops
from fastdiff.schedule import CLEAN, Time
from fastdiff.solvers import Plan, make_plan

FLOW = Schedule.flow(1000, shift=3.0)
SPACES = {
    **SCHEDULES,
    "sub_vp": Schedule.sub_vp(1000),
    "zero": Schedule.linear(1000).rescale_zero_terminal_snr(),
}
ROLLOUTS = {"flow_sde": "noise_level", "dance_sde": "eta", "flow_cps": "eta"}


def on_flow(solver: str, steps: int = 12, **options: Any) -> Plan:
    return make_plan(FLOW, solver=solver, steps=steps, prediction_type="flow", **options)


def of_velocity(plan: Plan) -> np.ndarray:
    """Returns the coefficients (x, v, z) of the next state of each row, for a network of v."""
    of = plan.column
    on_x, on_v = (of(f"x.{a}") + of("x.x0") * of(f"x0_{a}") for a in ("x", "out"))
    return np.stack([on_x, on_v, of("x.z")], axis=1)[:-1]


def published(plan: Plan, kind: str, strength: float) -> np.ndarray:
    """The same coefficients from the papers, in their order of operations."""
    t, s = plan.levels[:-1, 1], plan.levels[1:, 1]  # type: ignore[index]
    step = t - s
    if kind == "flow_cps":
        kept, std = np.cos(strength * np.pi / 2) * s, np.sin(strength * np.pi / 2) * s
        # x0 = x - t v and eps = x + (1 - t) v
        return np.stack([1 - s + kept, -(1 - s) * t + kept * (1 - t), std], axis=1)
    if kind == "flow_sde":
        below = np.where(t == 1, t[1], t)
        squared = strength**2 * t / (1 - below)
    else:
        squared = np.full_like(t, strength**2)
    drift = squared / (2 * t)
    on_v = -(1 + drift * (1 - t)) * step
    return np.stack([1 - drift * step, on_v, np.sqrt(squared * step)], axis=1)


@pytest.mark.parametrize("strength", [0.2, 0.7, 0.95])
@pytest.mark.parametrize("solver", ROLLOUTS)
def test_rows_are_those_of_the_papers(solver: str, strength: float) -> None:
    """All of them as published; by default all but those from pure noise and into clean data."""
    for steps in (2, 12, 40):
        options = {ROLLOUTS[solver]: strength}
        plan = on_flow(solver, steps, **options)
        expected = published(plan, solver, strength)
        t, s = plan.levels[:-1, 1], plan.levels[1:, 1]  # type: ignore[index]
        same = np.ones(steps, bool)
        if solver != "flow_cps":
            as_published = on_flow(solver, steps, as_published=True, **options)
            np.testing.assert_allclose(of_velocity(as_published), expected, rtol=1e-12, atol=1e-14)
            same = (expected[:, 2] ** 2 < 2 * s * t) & ((t < 1) | (solver == "dance_sde"))
            assert same[1:-1].sum() >= 0.7 * (steps - 2)
        np.testing.assert_allclose(of_velocity(plan)[same], expected[same], rtol=1e-12, atol=1e-14)
        # the others draw the state anew from x0 = x - t v
        anew = np.stack([1 - s, -(1 - s) * t, s], axis=1)[~same]
        np.testing.assert_allclose(of_velocity(plan)[~same], anew, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("solver", ROLLOUTS)
def test_every_space_has_the_steps_of_a_flow(solver: str, space: str) -> None:
    """A state over alpha + sigma takes the steps of flow matching at sigma/(alpha + sigma)."""
    schedule = SPACES[space]
    plan = make_plan(schedule, solver=solver, steps=9, prediction_type="x0")
    assert plan.levels is not None
    size = plan.levels.sum(axis=1)
    flow = SCHEDULES["flow"]
    times = [
        Time(0.0, a / n, s / n, math.inf if not s else 2 * math.log(a / s) if a else -math.inf)
        for (a, s), n in zip(plan.levels.tolist(), size.tolist(), strict=True)
    ]
    there = make_plan(flow, solver=solver, steps=9, prediction_type="x0", times=times)
    for column, scale in (("x.x", size[1:] / size[:-1]), ("x.x0", size[1:]), ("x.z", size[1:])):
        got, wanted = plan.column(column)[:-1], there.column(column)[:-1] * scale
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
    if solver == "flow_sde":
        assert (plan.column("x.z")[:-2] > 0).all()


@pytest.mark.parametrize("clip_range", [None, 1.0])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("solver", ROLLOUTS)
def test_without_noise_they_are_euler_to_the_bit(
    solver: str, space: str, clip_range: float | None
) -> None:
    for steps in (1, 2, 25):
        settings: dict[str, Any] = {
            "steps": steps,
            "prediction_type": "v",
            "clip_range": clip_range,
        }
        still = make_plan(SPACES[space], solver=solver, **{ROLLOUTS[solver]: 0.0}, **settings)
        euler = make_plan(SPACES[space], solver="flow_euler", **settings)
        assert np.array_equal(still.table, euler.table) and still.hash == euler.hash


def marginals(plan: Plan, mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the variance of the state before each row and at the end."""
    assert plan.levels is not None and not plan.slots
    data, x = Mixture((1.0,), (mean,), (std,)), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    table = torch.tensor(plan.table)
    alpha, sigma = plan.levels[0]
    means, variances = [alpha * mean], [alpha**2 * std**2 + sigma**2]
    for k in range(len(plan)):
        out = data.output(x, *plan.levels[k], "v")
        row, z = torch.full((2,), k), torch.zeros_like(x)
        at_zero, at_one = ops.reverse_step(x, out, table, row, noise=z, used=plan.used)[:, 0]
        gain = float(at_one - at_zero)
        means.append(float(at_zero) + gain * means[-1])
        variances.append(gain**2 * variances[-1] + plan.column("x.z")[k] ** 2)
    return np.array(means), np.array(variances)


def errors(plan: Plan, mean: float = 0.7, std: float = 0.5) -> tuple[float, float]:
    """Returns the largest errors of mean and variance over all rows, compared with the schedule."""
    means, variances = marginals(plan, mean, std)
    alpha, sigma = plan.levels.T  # type: ignore[union-attr]
    exact = alpha**2 * std**2 + sigma**2
    off = np.abs(means - alpha * mean) / np.sqrt(exact), np.abs(variances / exact - 1)
    return float(off[0].max()), float(off[1].max())


def slope(errors: list[float]) -> float:
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 1.4])
@pytest.mark.parametrize("space", ["vp", "ve", "flow", "sub_vp"])
@pytest.mark.parametrize("solver", ["flow_sde", "dance_sde"])
def test_marginals_at_every_row_converge_with_order_one(
    solver: str, space: str, strength: float
) -> None:
    def run(steps: int) -> tuple[float, float]:
        name = space if space in SCHEDULES else "vp"
        times = [SPACES[space].at_log_snr(t.log_snr) for t in levels(name, steps)]
        options = {ROLLOUTS[solver]: strength, "prediction_type": "v"}
        plan = make_plan(SPACES[space], solver=solver, steps=steps, times=times, **options)
        return errors(plan)

    found = [run(n) for n in (160, 320, 640)]
    for each in zip(*found, strict=True):
        assert max(each) < 1e-12 or slope(list(each)) > 0.85, each
    assert max(found[-1]) < 0.05, found


def variance_at_end(steps: int, std: float = 0.5, **settings: Any) -> float:
    """Returns the relative error of the samples' variance, on a grid even in t from pure noise."""
    plan = make_plan(Schedule.flow(8000), steps=steps, prediction_type="v", **settings)
    means, variances = marginals(plan, 0.7, std)
    assert means[-1] == pytest.approx(0.7, abs=1e-12)
    return float(variances[-1] / std**2 - 1)


@pytest.mark.parametrize("noise_level, low, high", [(0.7, 0.33, 0.5), (1.2, 0.9, 1.1)])
def test_order_from_pure_noise_on_an_even_grid(noise_level: float, low: float, high: float) -> None:
    """It tends to min(1, a²): the gain of later steps on the errors of the first ones."""
    options = {"solver": "flow_sde", "noise_level": noise_level}
    found = [abs(variance_at_end(n, **options)) for n in (2000, 4000, 8000)]
    assert low < slope(found) < high and found[0] < 3e-3, found


def test_pure_noise_and_clean_data_as_published() -> None:
    """The published first step has a⁴/4 too much variance, however short it is, and the last one
    leaves noise. Without that the marginals before clean data are closer to the schedule's.
    """
    for steps in (20, 80):
        times = [SCHEDULES["flow"].at(t) for t in np.linspace(999, 0, steps + 1)[:-1]] + [CLEAN]
        assert times[0].alpha == 0
        plans = [
            plan_on("flow", "flow_sde", times, as_published=published)
            for published in (False, True)
        ]
        ours, theirs = (marginals(plan, 0.0, 0.5)[1] for plan in plans)
        alpha, sigma = plans[0].levels.T  # type: ignore[union-attr]
        exact = alpha**2 * 0.25 + sigma**2
        assert ours[1] == pytest.approx(sigma[1] ** 2, rel=1e-12)
        wide = sigma[1] ** 2 + 0.49 * (1 - sigma[1]) + 0.49**2 / 4
        assert theirs[1] == pytest.approx(wide, rel=1e-12)
        assert plans[0].column("x.z")[-2] == 0 < plans[1].column("x.z")[-2]
        off = [np.abs(v / exact - 1)[:-1].max() for v in (ours, theirs)]
        assert off[0] < 0.8 * off[1], off


def test_steps_near_clean_data_are_stable() -> None:
    """Euler's steps with constant noise multiply what is left of the noise of narrow data."""
    worst = []
    for as_published in (False, True):
        plan = make_plan(
            Schedule.flow(1000),
            solver="dance_sde",
            steps=1000,
            prediction_type="v",
            as_published=as_published,
        )
        _, variances = marginals(plan, 0.0, 1e-3)
        alpha, sigma = plan.levels.T  # type: ignore[union-attr]
        worst.append((variances / (alpha**2 * 1e-6 + sigma**2))[:-1].max())
    assert worst[0] < 2 and worst[1] > 1000, worst


def test_coefficients_are_preserved() -> None:
    """flow_cps keeps the marginals at every row if x0 is exact. For wide data a short step loses
    (1 - cos)² of the variance of alpha x0 given x.
    """
    for eta in (0.3, 0.8, 1.0):
        plan = make_plan(FLOW, solver="flow_cps", steps=10, prediction_type="v", eta=eta)
        means, variances = marginals(plan, 0.7, 0.0)
        alpha, sigma = plan.levels.T  # type: ignore[union-attr]
        np.testing.assert_allclose(means, alpha * 0.7, rtol=1e-12)
        np.testing.assert_allclose(variances, sigma**2, rtol=1e-11, atol=1e-15)
        t = SCHEDULES["flow"].at_log_snr(0.3)
        s = SCHEDULES["flow"].at_log_snr(0.3 + 1e-9)
        short = plan_on("flow", "flow_cps", [t, s], eta=eta)
        _, (before, after) = marginals(short, 0.7, 0.5)
        given = t.alpha**2 * 0.25 * t.sigma**2 / before
        lost = (1 - math.cos(eta * math.pi / 2)) ** 2 * given
        assert before - after == pytest.approx(lost, rel=1e-6)


@pytest.mark.parametrize("space", SCHEDULES)
def test_er_sde_integrates_the_same_sde(space: str) -> None:
    """The coefficients of their steps differ in second order of the step."""

    def difference(steps: int) -> float:
        times = levels(space, steps)
        euler = plan_on(space, "flow_sde", times, noise_level=0.9)
        exact = plan_on(space, "er_sde", times, order=1, phi=0.9 * math.sqrt(0.5))
        off = []
        for plan in (euler, exact):
            of, size = plan.column, plan.levels.sum(axis=1)  # type: ignore[union-attr]
            scaled = (of("x.x")[:-1] * size[:-1], of("x.x0")[:-1], of("x.z")[:-1] ** 2 / size[1:])
            off.append(np.stack([v / size[1:] for v in scaled]))
        return float(np.abs(off[0] - off[1]).max())

    found = [difference(n) for n in (40, 80, 160)]
    assert 1.8 < slope(found) < 2.2, found


@pytest.mark.parametrize("solver, name", [("flow_sde", "flow"), ("dance_sde", "vp")])
def test_samples_of_a_mixture(solver: str, name: str) -> None:
    """Mean, variance and shares of a mixture, within five standard errors and the steps' error."""
    schedule, count = SCHEDULES[name], 40_000
    plan = make_plan(schedule, solver=solver, steps=150, prediction_type="v")
    start = ops.randn((count, 1), seed=5, dtype=torch.float64) * plan.initial_std
    draws = ops.randn((count, len(plan)), seed=6, stream=1, dtype=torch.float64)
    x = follow(plan, start, TWO, noise=draws.T[..., None].contiguous())[:, 0].numpy()
    w, m, s = (np.array(v) for v in TWO)
    mean = float(w @ m)
    variance = float(w @ (s**2 + m**2)) - mean**2
    assert x.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / count) + 0.01)
    assert x.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / count) + 0.03)
    for at in (-1.5, -0.5, 0.0, 0.5, 1.2):
        share = float(
            w
            @ [
                0.5 * (1 + math.erf((at - a) / (b * math.sqrt(2))))
                for a, b in zip(m, s, strict=True)
            ]
        )
        limit = 5 * math.sqrt(share * (1 - share) / count) + 0.01
        assert (x < at).mean() == pytest.approx(share, abs=limit)


@pytest.mark.parametrize("name", ["zero", "flow"])
def test_euler_maruyama_from_pure_noise(name: str) -> None:
    """The first step forgets x; the moments converge to the data's, with tau = 0 too."""
    schedule = SPACES[name]
    for tau, fresh in ((1.0, True), (0.5, True), (0.0, False)):
        plans = [
            make_plan(schedule, solver="euler_maruyama", steps=n, prediction_type="v", tau=tau)
            for n in (25, 50, 100)
        ]
        first = {k: plans[0].column(f"x.{k}")[0] for k in ("x", "x0", "z")}
        alpha, sigma = plans[0].levels[1]  # type: ignore[index]
        size = plans[0].levels[0][1]  # type: ignore[index]
        assert first["x0"] == pytest.approx(alpha) and first["z"] == (sigma if fresh else 0)
        assert first["x"] * size == pytest.approx(0 if fresh else sigma)
        ends = [abs(marginals(plan, 0.7, 0.5)[1][-1] / 0.25 - 1) for plan in plans]
        assert slope(ends) > 0.6 and ends[-1] < 0.15, ends


def test_ddim_with_eta_one_is_the_policy_of_ddpo() -> None:
    """Black et al. 2023 sample with DDIM's std at eta = 1 (Song, Meng & Ermon 2021, eq. 16)."""
    schedule = Schedule.scaled_linear(1000)
    for steps in (10, 50):
        plan = make_plan(schedule, solver="ddim", steps=steps, eta=1.0)
        a = plan.levels[:, 0] ** 2  # type: ignore[index]
        before, after = a[:-1], a[1:]
        std = np.sqrt((1 - after) / (1 - before) * (1 - before / after))
        np.testing.assert_allclose(plan.column("x.z")[:-1], std, rtol=1e-10, atol=1e-15)
        # eq. 12, in x and the network's eps, with x0 = (x - sqrt(1 - a) eps)/sqrt(a)
        on_x = np.sqrt(after / before)
        on_eps = np.sqrt(np.maximum(1 - after - std**2, 0)) - on_x * np.sqrt(1 - before)
        got_x = plan.column("x.x") + plan.column("x.x0") * plan.column("x0_x")
        got_eps = plan.column("x.out") + plan.column("x.x0") * plan.column("x0_out")
        np.testing.assert_allclose(got_x[:-1], on_x, rtol=1e-10)
        np.testing.assert_allclose(got_eps[:-1], on_eps, rtol=1e-8, atol=1e-9)
        assert (std[:-1] > 0).all() and std[-1] == 0


# of docs/sampling.md, in percent after 10, 25 and 50 steps
LOST = {
    ("flow_sde", None): (-9.2, -3.1, -1.1),
    ("dance_sde", None): (-22.5, -9.6, -5.4),
    ("ddim", 1.0): (-40.3, -21.1, -11.9),
    ("flow_cps", None): (-50.5, -42.8, -39.5),
    ("flow_cps", 0.3): (-29.4, -16.1, -11.2),
    ("flow_euler", None): (-25.8, -11.2, -5.8),
}


@pytest.mark.parametrize("solver, eta", LOST)
def test_the_variances_of_the_page(solver: str, eta: float | None) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "sampling.md").read_text()
    options = {} if eta is None else {"eta": eta}
    for steps, expected in zip((10, 25, 50), LOST[solver, eta], strict=True):
        off = 100 * variance_at_end(steps, solver=solver, **options)
        assert off == pytest.approx(expected, abs=0.06)
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {steps} | -"))
        assert f" {expected} %" in row
