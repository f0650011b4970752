"""Predictor and corrector against the same steps in NumPy, and the corrector's benefit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import Gaussian, Mixture

import fastdiff
from fastdiff import Sampler, Schedule, reference
from fastdiff.prediction import Parametrization
from fastdiff.theory.score import predictor_corrector

VARIANCE = 0.3


def draw(shape: tuple[int, ...], step: int) -> np.ndarray:
    return reference.randn(shape, seed=6, step=step, stream=1).astype(np.float64)


def times(schedule: Schedule, steps: int) -> list[Any]:
    """Trailing times u = 1, 1 - 1/n …, then clean data."""
    n, first = len(schedule.sigma), schedule.origin
    return [schedule.at((steps - i) * (n - 1 - first) / steps + first) for i in range(steps)]


def moves(
    schedule: Schedule, steps: int, corrector_steps: int, snr: float
) -> list[tuple[float, float, int]]:
    """(gain, noise deviation, noise step) of every step on data N(0, VARIANCE).

    Each step is x <- gain x + deviation z.
    """
    found, grid = [], times(schedule, steps)
    for k, t in enumerate(grid):
        total = t.alpha**2 * VARIANCE + t.sigma**2
        if k + 1 == steps:
            found.append((t.alpha * VARIANCE / total, 0.0, k))
            break
        s = grid[k + 1]
        # ∫ f and ∫ g² over the step, from the integrals of beta
        spread = -2 * math.log(t.alpha / s.alpha)
        if schedule.space == "sub_vp":
            spread -= 0.5 * (s.alpha**4 - t.alpha**4)
        if schedule.space == "ve":
            spread = t.sigma**2 - s.sigma**2
        found.append((1 - math.log(t.alpha / s.alpha) - spread / total, math.sqrt(spread), k))
        c = 2 * (snr * s.sigma) ** 2
        total = s.alpha**2 * VARIANCE + s.sigma**2
        for j in range(corrector_steps):
            found.append((1 - c / total, math.sqrt(2 * c), steps + k * corrector_steps + j))
    return found


@pytest.mark.parametrize("space", ["vp", "sub_vp", "ve"])
@pytest.mark.parametrize("corrector_steps", [0, 2])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_run_is_its_steps_written_out(space: str, corrector_steps: int, backend: str) -> None:
    """A run on data of mean 0, in float64."""
    schedule = {
        "vp": Schedule.vp(1000),
        "sub_vp": Schedule.sub_vp(1000),
        "ve": Schedule.ve(1000, sigma_max=9.0),
    }[space]
    x_T = torch.tensor([[0.3, -1.0], [2.0, 0.7]], dtype=torch.float64) * schedule.sigma[-1]
    with fastdiff.use(backend):
        got = predictor_corrector(
            Gaussian([0.0, 0.0], np.eye(2) * VARIANCE, kind="epsilon"),
            schedule,
            x_T=x_T,
            steps=7,
            corrector_steps=corrector_steps,
            snr=0.25,
            ratio="level",
            seed=6,
            dtype=torch.float64,
        )
    x = x_T.numpy()
    for gain, deviation, step in moves(schedule, 7, corrector_steps, 0.25):
        x = gain * x + deviation * draw((2, 2), step)
    np.testing.assert_allclose(got, x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("space", ["vp", "ve"])
def test_the_corrector_takes_the_predictors_error_away(space: str) -> None:
    """Twenty predictor steps miss the variance of the data; the corrector reduces the error.

    Variances are propagated exactly.
    """
    schedule = (
        Schedule.vp(1000) if space == "vp" else Schedule.ve(1000, sigma_min=0.01, sigma_max=9.0)
    )
    errors = []
    for corrector_steps, snr in ((0, 0.0), (4, 0.2), (16, 0.2)):
        variance = float(schedule.sigma[-1]) ** 2
        for gain, deviation, _ in moves(schedule, 20, corrector_steps, snr):
            variance = gain**2 * variance + deviation**2
        errors.append(abs(variance / VARIANCE - 1))
    assert errors[0] > 0.1 and errors[1] < 0.6 * errors[0] and errors[2] < 0.3 * errors[0], errors


def test_no_corrector_is_the_sampler() -> None:
    model, schedule = Mixture([0.4, 0.6], [[-1.0, 0.0], [0.8, 0.5]], [0.4, 0.6]), Schedule.vp(1000)
    for predictor in ("euler_maruyama", "ddpm", "ddim"):
        settings: dict[str, Any] = {"steps": 12, "prediction_type": "v"}
        got = predictor_corrector(
            model, schedule, (4, 2), predictor=predictor, corrector_steps=0, seed=3, **settings
        )
        assert torch.equal(
            got, Sampler(model, schedule, solver=predictor, **settings).sample((4, 2), seed=3)
        )


@pytest.mark.parametrize("ratio", ["norm", "level"])
def test_samples_have_the_datas_law_and_do_not_depend_on_their_batch(ratio: str) -> None:
    model, schedule = Mixture([0.3, 0.7], [[-1.5] * 16, [0.6] * 16], [0.3, 0.5]), Schedule.vp(1000)
    settings: dict[str, Any] = {
        "steps": 40,
        "corrector_steps": 1,
        "snr": 0.16,
        "ratio": ratio,
        "prediction_type": "v",
    }
    x = predictor_corrector(model, schedule, (600, 16), seed=0, **settings)
    side = x.mean(1) > -0.45
    assert abs(float(side.double().mean()) - 0.7) < 0.1
    assert float(x[side].std()) == pytest.approx(0.5, rel=0.08) and float(
        x[~side].std()
    ) == pytest.approx(0.3, rel=0.12)
    alone = predictor_corrector(model, schedule, (1, 16), seed=0, sample_ids=[5], **settings)
    assert torch.equal(alone[0], x[5])


def test_scaled_inputs_follow_the_correction() -> None:
    """A parametrization that scales the network's input scales the corrected state."""
    schedule = Schedule.ve(1000, sigma_min=0.05, sigma_max=9.0)
    data = Gaussian([0.0, 0.0], np.eye(2) * VARIANCE)

    class Unit:
        network_time = staticmethod(data.network_time)

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            point = data.points[int(t[0])]
            size = math.hypot(1.0, point.sigma)
            return (x * size - data.x0(x * size, 1.0, point.sigma)) / point.sigma

    settings: dict[str, Any] = {
        "steps": 6,
        "snr": 0.2,
        "ratio": "level",
        "seed": 6,
        "dtype": torch.float64,
    }
    x_T = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    one = predictor_corrector(
        Unit(),
        schedule,
        x_T=x_T,
        prediction_type=Parametrization("epsilon", unit_input=True),
        **settings,
    )
    two = predictor_corrector(
        Gaussian([0.0, 0.0], np.eye(2) * VARIANCE, kind="epsilon"), schedule, x_T=x_T, **settings
    )
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


def test_predictors_with_a_memory_are_refused() -> None:
    model, schedule = Mixture([1.0], [[0.0]], [1.0]), Schedule.vp(1000)
    with pytest.raises(
        ValueError,
        match="predictor_corrector: expected a predictor without memory, got 'dpm[+][+]2m'",
    ):
        predictor_corrector(
            model, schedule, (1, 1), predictor="dpm++2m", steps=5, prediction_type="v"
        )
    with pytest.raises(ValueError, match="predictor_corrector: expected snr in"):
        predictor_corrector(model, schedule, (1, 1), snr=0.0, steps=5, prediction_type="v")
