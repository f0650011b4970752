"""The probability flow against DOP853 on mixtures, in every space and both directions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES, Gaussian, Mixture
from scipy.integrate import solve_ivp

from fastdiff import Sampler, Schedule
from fastdiff.sampling.model_call import ModelCall
from fastdiff.theory.score import probability_flow
from fastdiff.theory.score.velocity import Velocity, angle

X = torch.linspace(-2.2, 2.2, 9, dtype=torch.float64)[:, None]
TWO = ([0.4, 0.6], [[-1.0], [0.8]], [0.4, 0.6])


def truth(x: np.ndarray, start: Any, end: Any) -> np.ndarray:
    """The flow of TWO by a method of order 8.

    In the coordinates of Karras et al. it is d(x/alpha)/d ln rho = x/alpha - x0.
    """
    data = Mixture(*TWO)

    def slope(u: float, z: np.ndarray) -> np.ndarray:
        return z - data.x0(torch.from_numpy(z)[:, None], 1.0, math.exp(u))[:, 0].numpy()

    span = (math.log(start.rho), math.log(end.rho))
    return (
        end.alpha
        * solve_ivp(slope, span, x / start.alpha, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["v", "epsilon"])
def test_states_are_those_of_the_flow(name: str, kind: str) -> None:
    """States towards data and back to noise, between rho = 60 and 0.02.

    The error follows the tolerance in every space.
    """
    schedule = SCHEDULES[name]
    high, low = (schedule.at_log_snr(-2 * math.log(rho)) for rho in (60.0, 0.02))
    model, size = Mixture(*TWO, kind=kind), math.hypot(high.alpha, high.sigma)
    ends: dict[str, Any] = {
        "sigma_max": 60.0,
        "sigma_min": 0.02,
        "prediction_type": kind,
        "dtype": torch.float64,
    }
    for rtol in (1e-4, 1e-7):
        got = probability_flow(
            model, schedule, x_T=X * size, rtol=rtol, atol=rtol, denoise=False, **ends
        )
        want = truth((X * size)[:, 0].numpy(), high, low)
        assert np.abs(got[:, 0].numpy() - want).max() < 200 * rtol
        back = probability_flow(model, schedule, x0=got / low.alpha, rtol=rtol, atol=rtol, **ends)
        assert float((back - X * size).abs().max() / size) < 200 * rtol


def test_a_sample_takes_scipys_steps() -> None:
    """On the circle with the exact v, each sample takes the steps of SciPy's RK45."""
    schedule = SCHEDULES["vp"]
    high, low = schedule.at(999), schedule.at(0)
    model = Mixture(*TWO)
    start = high.sigma * X
    got, info = probability_flow(
        model,
        schedule,
        x_T=start,
        prediction_type="v",
        dtype=torch.float64,
        rtol=1e-5,
        atol=1e-6,
        denoise=False,
        return_info=True,
    )

    def v(phi: float, y: np.ndarray) -> np.ndarray:
        x0 = model.x0(torch.from_numpy(y)[None], math.cos(phi), math.sin(phi))[0].numpy()
        return (math.cos(phi) * y - x0) / math.sin(phi)

    for i in (0, 3, 8):
        theirs = solve_ivp(v, (angle(high), angle(low)), start[i].numpy(), rtol=1e-5, atol=1e-6)
        assert theirs.nfev == info.evaluations[i] and len(theirs.t) - 1 == info.accepted[i]
        np.testing.assert_allclose(got[i].numpy(), theirs.y[:, -1], rtol=0, atol=1e-10)
    assert len(set(info.evaluations.tolist())) > 1


def test_a_sample_is_the_same_alone_and_the_finished_leave() -> None:
    settings: dict[str, Any] = {
        "prediction_type": "v",
        "seed": 5,
        "return_info": True,
        "rtol": 1e-5,
        "atol": 1e-5,
    }
    model = Mixture(*TWO)
    whole, info = probability_flow(model, SCHEDULES["vp"], (7, 1), **settings)
    assert min(model.rows) < 7 and sum(model.rows) == int(info.evaluations.sum())
    for i in (0, 4, 6):
        alone, one = probability_flow(
            Mixture(*TWO), SCHEDULES["vp"], (1, 1), sample_ids=[i], **settings
        )
        assert torch.equal(alone[0], whole[i]) and one.evaluations[0] == info.evaluations[i]
    assert probability_flow(model, SCHEDULES["vp"], (0, 1), prediction_type="v", seed=1).shape == (
        0,
        1,
    )


def test_every_call_has_network_batch_rows() -> None:
    """Calls are padded to network_batch rows, for a network that depends on their number.

    A sample then has the same bits alone and in any batch.
    """

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert len(x) == len(t) == len(y) == 4
        return torch.tanh(x * (1.0 + 0.01 * len(x))) * (0.5 + t[:, None]) + 0.1 * y[:, None]

    settings: dict[str, Any] = {"prediction_type": "v", "seed": 2, "network_batch": 4}
    y = torch.arange(6.0)
    whole = probability_flow(model, SCHEDULES["vp"], (6, 3), cond={"y": y}, **settings)
    alone = probability_flow(
        model, SCHEDULES["vp"], (1, 3), cond={"y": y[5:]}, sample_ids=[5], **settings
    )
    assert torch.equal(alone[0], whole[5])
    with pytest.raises(ValueError, match="expected network_batch >= 1 or None, got 0"):
        probability_flow(model, SCHEDULES["vp"], (1, 3), **settings | {"network_batch": 0})


def test_samples_have_the_datas_law_and_guidance_its_mean() -> None:
    x = probability_flow(Mixture(*TWO), SCHEDULES["flow"], (1500, 1), seed=0, prediction_type="v")
    mean, second = 0.4 * -1.0 + 0.6 * 0.8, 0.4 * (1 + 0.16) + 0.6 * (0.64 + 0.36)
    assert abs(float(x.mean()) - mean) < 0.1 and abs(float((x**2).mean()) - second) < 0.15
    data = Gaussian([0.0], [[0.25]])

    def model(x: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (
            torch.tensor([getattr(data.points[int(v)], n) for v in t])[:, None]
            for n in ("alpha", "sigma")
        )
        return data(x - alpha * m[:, None], t) - sigma * m[:, None]

    model.network_time = data.network_time  # type: ignore[attr-defined]
    # equal variances: the guided field is the score of N(m_u + gamma (m_c - m_u), s²), each sample
    # with its own gamma
    gamma = torch.tensor([0.0, 1.0, 2.0]).repeat(200)
    got = probability_flow(
        model,
        SCHEDULES["vp"],
        (600, 1),
        seed=1,
        cond={"m": torch.full((600,), 1.0)},
        uncond={"m": torch.full((600,), -0.5)},
        guidance_scale=gamma,
        prediction_type="v",
    )
    for value, mean in [(0.0, -0.5), (1.0, 1.0), (2.0, 2.5)]:
        assert abs(float(got[gamma == value].mean()) - mean) < 0.18


def test_fixed_grids_are_plans() -> None:
    """Solvers of plans give the results of `Sampler` and converge to those of rk45."""
    schedule, model = SCHEDULES["vp"], Mixture(*TWO)
    settings: dict[str, Any] = {"prediction_type": "v", "seed": 3}
    exact = probability_flow(model, schedule, (50, 1), rtol=1e-6, atol=1e-6, **settings)
    far = []
    for steps in (20, 80):
        got = probability_flow(
            model,
            schedule,
            (50, 1),
            solver="heun",
            steps=steps,
            timestep_spacing="karras",
            **settings,
        )
        own = Sampler(
            model,
            schedule,
            solver="heun",
            steps=steps,
            timestep_spacing="karras",
            prediction_type="v",
        )
        assert torch.equal(got, own.sample((50, 1), seed=3))
        far.append(float((got - exact).abs().max()))
    assert far[1] < 0.2 * far[0] and far[1] < 0.02
    noise = probability_flow(
        model,
        schedule,
        x0=exact.double(),
        solver="ddim_inverse",
        steps=400,
        dtype=torch.float64,
        prediction_type="v",
    )
    back = probability_flow(
        model, schedule, x0=exact.double(), dtype=torch.float64, prediction_type="v"
    )
    assert float((noise - back).abs().max()) < 0.1


@pytest.mark.parametrize("data", [Mixture([1.0], [[0.0]], [1.0], kind="epsilon"), Mixture(*TWO)])
@pytest.mark.parametrize(
    "schedule",
    [Schedule.linear(1000), Schedule.cosine(1000), Schedule.ve(100, sigma_min=0.01, sigma_max=50)],
    ids=repr,
)
def test_there_and_back(schedule: Schedule, data: Mixture) -> None:
    """What the docstring says that x0 = 1 returns as, for each setting."""
    x0, alpha = torch.ones(1, 1, dtype=torch.float64), schedule.at(0).alpha
    kind = "epsilon" if len(data.means) == 1 else "v"
    settings: dict[str, Any] = {"dtype": torch.float64, "prediction_type": kind}

    def returned(back: dict[str, Any], there: dict[str, Any]) -> float:
        noise = probability_flow(data, schedule, x0=x0, **there, **settings)
        return float(probability_flow(data, schedule, x_T=noise, **back, **settings))

    for tolerance, error in ((1e-4, 5e-4), (1e-7, 1e-5)):
        near: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
        assert abs(returned(near | {"denoise": False}, near) / alpha - 1) < error
    assert abs(returned({}, {}) - 1) < 5e-4
    for steps, low, high in ((25, 0.84, 0.94), (400, 0.989, 0.996)):
        grid = {"steps": steps}
        got = returned(grid | {"solver": "ddim"}, grid | {"solver": "ddim_inverse"})
        assert low < got < high


def test_discrete_networks_may_get_times_between_timesteps() -> None:
    """Whole timesteps give a kink at each timestep, which takes more evaluations.

    Both settings find the flow of a network that is smooth in time.
    """
    schedule, seen = Schedule.linear(1000), []
    table = torch.from_numpy(schedule.log_snr.copy())

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.dtype)
        at = t.double().clamp(0, 999)
        low = at.floor().long().clamp(max=998)
        log_snr = table[low] + (at - low) * (table[low + 1] - table[low])
        alpha, sigma = (
            torch.sigmoid(log_snr).sqrt()[:, None],
            torch.sigmoid(-log_snr).sqrt()[:, None],
        )
        return Mixture(*TWO, kind="epsilon").output(x, alpha, sigma)

    settings: dict[str, Any] = {
        "x_T": X,
        "dtype": torch.float64,
        "rtol": 1e-5,
        "atol": 1e-5,
        "return_info": True,
    }
    smooth, few = probability_flow(model, schedule, fractional_times=True, **settings)
    assert set(seen) == {torch.float32}
    seen.clear()
    whole, many = probability_flow(model, schedule, **settings)
    assert set(seen) == {torch.int64}
    assert (
        few.evaluations.sum() < many.evaluations.sum()
        and float((smooth - whole).abs().max()) < 0.02
    )


def test_wrong_arguments_are_named() -> None:
    model, schedule = Mixture(*TWO), SCHEDULES["vp"]
    for arguments, message in [
        (
            {"solver": "ddpm", "steps": 5, "shape": (1, 1)},
            "expected a deterministic solver, got 'ddpm' with noise",
        ),
        (
            {"solver": "ddim", "steps": 5, "x0": X},
            "expected x0 only with solvers from data to noise, got 'ddim' with it",
        ),
        ({"solver": "ddim_inverse", "steps": 5, "shape": (1, 1)}, "got 'ddim_inverse' without it"),
        ({"x0": X, "x_T": X}, "expected one of shape, x_T and x0"),
        (
            {"shape": (1, 1), "timestep_spacing": "karras"},
            "expected no further options with rk45, got 'timestep_spacing'",
        ),
        ({"solver": "heun", "return_info": True, "shape": (1, 1)}, "only with rk45, got 'heun'"),
        ({"shape": (1, 1), "guidance_scale": 2.0}, "probability_flow: expected uncond"),
    ]:
        with pytest.raises(
            ValueError, match=r"fastdiff\.score\.probability_flow: .*|" + message
        ) as caught:
            probability_flow(model, schedule, prediction_type="v", **arguments)  # type: ignore[arg-type]
        assert caught.match(message)


def test_the_velocity_is_v_whatever_is_predicted() -> None:
    """v is the same for all prediction types and spaces.

    At clean data and pure noise it is eps and -x0.
    """
    rows, phi = torch.arange(9), np.linspace(0.05, 1.5, 9)
    want = None
    for schedule in SCHEDULES.values():
        for kind in ("epsilon", "x0", "v", "score", "flow", "edm"):
            model = Mixture(*TWO, kind=kind)
            got = Velocity(ModelCall(model, schedule, kind, where="test"), 9)(X, phi, rows)
            want = got if want is None else want
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
