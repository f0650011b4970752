"""Adaptive DPM-Solver and samplers on a Brownian path, on Gaussian data whose answers are known
(tests/gaussian.py).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import Schedule, randn
from fastdiff.sampling.adaptive import (
    BrownianTree,
    StepSize,
    dpm_adaptive,
    dpm_fast,
    integrate,
    on_tree,
)
from fastdiff.sampling.model_call import ModelCall
from fastdiff.solvers import make_plan

SCHEDULE = Schedule.linear(1000)
STD = 0.5


class Exact:
    """The optimal eps for N(mean, STD²). Its time is the log-SNR, not a timestep."""

    def __init__(self, schedule: Schedule = SCHEDULE, mean: float = 0.0):
        self.schedule, self.mean, self.calls = schedule, mean, 0
        self.shapes: list[int] = []

    def network_time(self, point: Any) -> float:
        return point.log_snr

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, mean: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.calls += 1
        self.shapes.append(len(x))
        rho2 = torch.exp(-t.double())
        alpha2 = {
            "vp": 1 / (1 + rho2),
            "ve": torch.ones_like(rho2),
            "flow": 1 / (1 + rho2.sqrt()) ** 2,
        }
        alpha = alpha2[self.schedule.space].sqrt().view(-1, *(1,) * (x.ndim - 1))
        sigma = alpha * rho2.sqrt().view(alpha.shape)
        centre = self.mean if mean is None else mean.view(alpha.shape)
        return (sigma * (x - alpha * centre) / (alpha**2 * STD**2 + sigma**2)).to(x.dtype)


def exact_gain(schedule: Schedule) -> float:
    """x(sigma_min)/x_T along the probability flow: sqrt of the ratio of variances."""
    first, last = schedule.at(999), schedule.at(0)
    variance = [p.alpha**2 * STD**2 + p.sigma**2 for p in (first, last)]
    return math.sqrt(variance[1] / variance[0])


@pytest.mark.parametrize("order", [2, 3])
def test_the_error_follows_the_tolerance(order: int) -> None:
    """On one state over decades of rtol; the error is that of the flow's solution, and the calls
    grow slowly.
    """
    x, errors, calls = torch.full((1, 4), 2.0, dtype=torch.float64), [], []
    tolerances = [1e-2, 1e-3, 1e-4, 1e-5] if order == 3 else [1e-2, 1e-3, 1e-4]
    for rtol in tolerances:
        got, info = dpm_adaptive(
            Exact(),
            SCHEDULE,
            x_T=x,
            dtype=torch.float64,
            order=order,
            rtol=rtol,
            atol=rtol * 1e-2,
            denoise=False,
            return_info=True,
        )
        errors.append(abs(float(got[0, 0] / x[0, 0]) / exact_gain(SCHEDULE) - 1))
        calls.append(info.network_calls)
        assert info.network_calls == order * int((info.accepted + info.rejected).max())
    # local extrapolation: the error kept is that of the higher order, rtol^(p/(p-1)) or better is
    # expected of it
    slope = math.log(errors[0] / errors[-1]) / math.log(tolerances[0] / tolerances[-1])
    assert slope > 0.8, errors
    assert errors[-1] < 20 * tolerances[-1], errors
    growth = math.log(calls[-1] / calls[0]) / math.log(tolerances[0] / tolerances[-1])
    assert growth < 1.3 / order, calls


@pytest.mark.parametrize(
    "schedule", [SCHEDULE, Schedule.karras(), Schedule.flow()], ids=lambda s: s.space
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_datas_mean_and_variance(schedule: Schedule, eta: float) -> None:
    """At a tight tolerance: the published scale max(|x| before, |x| after) lets a step over many
    noise levels pass.
    """
    n = 300
    got = dpm_adaptive(
        Exact(schedule, 1.5), schedule, (n, 4), seed=3, rtol=1e-4, atol=1e-5, eta=eta
    )
    assert abs(float(got.mean()) - 1.5) < 5 * STD / math.sqrt(4 * n) + 0.01
    assert abs(float(got.std()) / STD - 1) < 5 / math.sqrt(8 * n) + 0.02


def test_a_sample_is_the_same_alone_and_in_any_batch() -> None:
    for eta in (0.0, 1.0):
        whole, info = dpm_adaptive(Exact(), SCHEDULE, (7, 3, 5), seed=3, eta=eta, return_info=True)
        for i in (0, 4, 6):
            alone, one = dpm_adaptive(
                Exact(), SCHEDULE, (1, 3, 5), seed=3, sample_ids=[i], eta=eta, return_info=True
            )
            assert torch.equal(alone[0], whole[i])
            assert one.accepted[0] == info.accepted[i] and one.rejected[0] == info.rejected[i]
        assert eta == 0 or len(set(info.accepted + info.rejected)) > 1


def test_guidance_reaches_the_guided_mean() -> None:
    """Equal variances: the guided field is the exact one of N(m_u + gamma (m_c - m_u), s²)."""
    cond, uncond = {"mean": torch.full((500,), 1.0)}, {"mean": torch.full((500,), -0.5)}
    model = Exact()
    got = dpm_adaptive(
        model,
        SCHEDULE,
        (500, 8),
        seed=1,
        cond=cond,
        uncond=uncond,
        guidance_scale=2.0,
        rtol=1e-2,
        atol=1e-3,
    )
    assert abs(float(got.mean()) - 2.5) < 0.05 and set(model.shapes) == {1000}
    plain, same = (
        dpm_adaptive(Exact(), SCHEDULE, (5, 8), seed=1, cond={"mean": torch.ones(5)}, **more)
        for more in ({}, {"uncond": {"mean": torch.zeros(5)}, "guidance_scale": torch.ones(5)})
    )
    torch.testing.assert_close(plain, same, rtol=1e-5, atol=1e-5)
    chosen = dpm_adaptive(
        Exact(), SCHEDULE, (5, 8), seed=1, uncond={"mean": torch.ones(5)}, guidance_scale=0.0
    )
    assert torch.equal(chosen, plain)


def test_an_error_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(ValueError, match="expected finite states, got an error of nan at lambda"):
        dpm_adaptive(lambda x, t: x * math.nan, SCHEDULE, (2, 3), seed=1)
    with pytest.raises(ValueError, match="expected steps that move, got h = "):
        # what the network says has nothing to do with x: no step is small enough
        signs = itertools.cycle([1e12, -1e12, 3e12])
        integrate(lambda x, lam: x + next(signs), torch.ones(1, 4), -3.0, 3.0, rtol=1e-6, atol=1e-6)
    for wrong, match in [
        ({"order": 4}, "order 2 or 3"),
        ({"rtol": -1.0}, "tolerances"),
        ({"guidance_scale": 2.0}, "uncond"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_max > sigma_min"),
        ({"sigma_min": 0.0}, "sigma_min > 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            dpm_adaptive(Exact(), SCHEDULE, (2, 3), seed=1, **wrong)
    with pytest.raises(ValueError, match="model output"):
        dpm_adaptive(lambda x, t: x[:, :1], SCHEDULE, (2, 3), seed=1)


def test_the_controllers_formula() -> None:
    """Against the published recursion for one sample, over errors that it takes and refuses."""
    errors = [0.3, 2.5, 0.9, 1e-3, 7.0, 1.0]
    controller = StepSize(0.1, 2, order=3, pcoeff=0.3, icoeff=0.6, dcoeff=0.1)
    h, before = 0.1, None
    for error in errors:
        taken = controller.propose(np.array([error, 0.5]), np.array([True, False]))
        inverse = 1 / (error + 1e-8)
        before = before or [inverse, inverse]
        factor = inverse ** (1.0 / 3) * before[0] ** (-0.5 / 3) * before[1] ** (0.1 / 3)
        factor = 1 + math.atan(factor - 1)
        h *= factor
        assert taken[0] == (factor >= 0.81) and not taken[1]
        if taken[0]:
            before = [inverse, before[0]]
        np.testing.assert_allclose(controller.h, [h, 0.1], rtol=1e-13)


def test_a_controller_with_limits_is_the_textbooks() -> None:
    """h changes by min(10, max(0.2, 0.9 e^(-1/5))), by no more than 1 after a refusal; below an
    error of 1 it is taken.
    """
    controller = StepSize(np.array([0.1, 0.7]), 2, order=5, limits=(0.2, 10.0))
    h, refused = 0.1, False
    for error in [0.3, 2.5, 0.9, 1e-9, 1e9, 1e9, 0.0, 1.0]:
        taken = controller.propose(np.array([error, 0.5]), np.array([True, False]))
        factor = 10.0 if error == 0 else min(10.0, max(0.2, 0.9 * error**-0.2))
        h *= min(factor, 1.0) if refused and error < 1 else factor
        refused = error >= 1
        assert taken.tolist() == [error < 1, False]
        np.testing.assert_allclose(controller.h, [h, 0.7], rtol=1e-13)
    controller.keep(np.array([False, True]))
    assert controller.h.tolist() == [0.7]


def test_a_network_for_some_samples_has_their_arguments() -> None:
    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
        return x * scale + y.view(-1, 1)

    x, y, none = torch.randn(5, 3), torch.arange(5.0), torch.full((5,), -1.0)
    rows = torch.tensor([3, 0])
    for gamma in (1.0, torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])):
        call = ModelCall(
            model,
            SCHEDULE,
            "v",
            cond={"y": y, "scale": 2.0},
            uncond={"y": none, "scale": 2.0},
            guidance_scale=gamma,
            where="test",
        )
        whole = call(x, [1.0] * 5)
        assert torch.equal(call.part(rows, 5)(x[rows], [1.0] * 2), whole[rows])


def test_dpm_fast_counts_its_calls_and_converges() -> None:
    x, errors = torch.full((1, 4), 2.0, dtype=torch.float64), []
    for calls in (30, 60, 120):
        model = Exact()
        got = dpm_fast(model, SCHEDULE, x_T=x, dtype=torch.float64, calls=calls)
        assert model.calls == calls
        errors.append(abs(float(got[0, 0] / x[0, 0]) / exact_gain(SCHEDULE) - 1))
    assert math.log2(errors[0] / errors[2]) / 2 > 1.9, errors  # two of its steps are of lower order
    got = dpm_fast(Exact(mean=1.5), SCHEDULE, (4000, 2), seed=3, calls=30, eta=1.0)
    assert abs(float(got.mean()) - 1.5) < 0.04 and abs(float(got.std()) / STD - 1) < 0.05


@pytest.mark.parametrize(
    "solver", ["dpm++sde", "dpm++2m_sde", "dpm++2s_ancestral", "euler_ancestral"]
)
def test_a_seed_converges_with_more_steps_on_a_tree(solver: str) -> None:
    """Strong convergence on one path; independent draws stay as far apart as two samples."""
    shape = (64, 16)

    def at(steps: int) -> torch.Tensor:
        return on_tree(
            Exact(), SCHEDULE, shape, seed=5, steps=steps, solver=solver, timestep_spacing="karras"
        )

    fine = at(320)
    far = [float((at(steps) - fine).square().mean().sqrt()) for steps in (20, 80)]
    assert far[1] < 0.45 * far[0] and far[1] < 0.12 * STD, far
    other = on_tree(
        Exact(), SCHEDULE, shape, seed=6, steps=320, solver=solver, timestep_spacing="karras"
    )
    assert float((other - fine).square().mean().sqrt()) > STD


@pytest.mark.parametrize("solver", ["dpm++sde", "dpm++2m_sde"])
def test_samples_on_a_tree_have_the_datas_law_and_do_not_know_their_batch(solver: str) -> None:
    settings: dict[str, Any] = {"solver": solver, "steps": 60, "timestep_spacing": "karras"}
    got = on_tree(Exact(mean=1.5), SCHEDULE, (4000, 2), seed=3, **settings)
    assert abs(float(got.mean()) - 1.5) < 5 * STD / math.sqrt(8000) + 0.01
    assert abs(float(got.std()) / STD - 1) < 5 / math.sqrt(16000) + 0.03
    alone = on_tree(Exact(mean=1.5), SCHEDULE, (1, 2), seed=3, sample_ids=[17], **settings)
    assert torch.equal(alone[0], got[17])


def test_the_two_stages_of_dpmpp_sde_share_one_path() -> None:
    """The plan's own noise: the whole step's draw has variance one and the first stage's share of
    it.
    """
    times = [SCHEDULE.at_log_snr(v) for v in (-1.0, 0.6)]
    plan = make_plan(SCHEDULE, solver="dpm++sde", steps=1, times=times)
    first, t, m, s = plan.column("x.z")[0], *(plan.levels[i] for i in range(3))
    rho_t, rho_m, rho_s = (sigma / alpha for alpha, sigma in (t, m, s))
    up = rho_s * math.sqrt(1 - (rho_s / rho_t) ** 2)
    kept = sum(plan.column(f"s{i}.z")[0] * plan.column(f"x.s{i}")[1] for i in range(1, 5))
    on_first, on_second = float(kept), plan.column("x.z")[1]
    assert math.hypot(on_first, on_second) == pytest.approx(s[0] * up, rel=1e-12)
    share = (rho_m**-2 - rho_t**-2) / (rho_s**-2 - rho_t**-2)
    assert (on_first / (s[0] * up)) ** 2 == pytest.approx(share, rel=1e-9) and first > 0


def test_churn_is_refused_on_a_tree() -> None:
    with pytest.raises(ValueError, match="expected a solver whose noise goes with a step"):
        on_tree(Exact(), SCHEDULE, (2, 3), seed=1, solver="edm", steps=10, s_tmax=math.inf)


def test_a_run_repeats_from_torchs_seed() -> None:
    torch.manual_seed(4)
    one, two = (dpm_adaptive(Exact(), SCHEDULE, (2, 3)) for _ in range(2))
    torch.manual_seed(4)
    assert torch.equal(dpm_adaptive(Exact(), SCHEDULE, (2, 3)), one) and not torch.equal(one, two)


def test_trees_noise_is_not_the_solvers() -> None:
    """Stream 6 is the tree's alone: none of its nodes is a draw of stream 1."""
    node = BrownianTree((1, 64), seed=3, low=0.0, high=1.0, depth=1).increment(0.0, 1.0)
    assert all(not torch.equal(node, randn((1, 64), seed=3, stream=s, step=0)) for s in range(6))
