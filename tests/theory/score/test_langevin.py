"""Langevin dynamics against the recursion written out, alone and annealed over noise levels.

The law of the recursion on Gaussian data is known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import Gaussian, Mixture

import fastdiff
from fastdiff import Schedule, reference
from fastdiff.theory.score import annealed_langevin, langevin
from fastdiff.theory.score.langevin import LIMIT, move, step_sizes


def draw(shape: tuple[int, ...], seed: int, step: int) -> np.ndarray:
    """A draw of stream 1 of the noise contract, in float64."""
    return reference.randn(shape, seed=seed, step=step, stream=1).astype(np.float64)


def test_the_recursion_and_its_law_on_a_gaussian() -> None:
    """x <- g x + c m/s² + sqrt(2c) z with g = 1 - c/s², and c of each sample.

    The variance Σ g^2j 2c is s²/(1 - c/(2 s²)).
    """
    m, s2, n, steps = 0.7, 0.36, 2000, 60
    c = torch.tensor([0.02, 0.1, 0.3], dtype=torch.float64).repeat(n)
    x = langevin(
        lambda x: -(x - m) / s2,
        torch.zeros(3 * n, 2, dtype=torch.float64),
        steps=steps,
        step_size=c,
        seed=9,
    )
    want, sizes = np.zeros((3 * n, 2)), c.numpy()[:, None]
    for k in range(steps):
        want = want + sizes * -(want - m) / s2 + np.sqrt(2 * sizes) * draw((3 * n, 2), 9, k)
    np.testing.assert_allclose(x, want, rtol=1e-11, atol=1e-12)
    for value in (0.02, 0.1, 0.3):
        gain = 1 - value / s2
        law = 2 * value * (1 - gain ** (2 * steps)) / (1 - gain**2)
        stationary = s2 / (1 - value / (2 * s2))
        assert law == pytest.approx(stationary * (1 - gain ** (2 * steps)), rel=1e-12)
        part = x[c == value]
        assert float(part.var()) == pytest.approx(law, rel=5 * math.sqrt(2 / part.numel()))
        mean = m * (1 - gain**steps)
        assert abs(float(part.mean()) - mean) < 5 * math.sqrt(law / part.numel())


def test_a_run_continues_and_does_not_depend_on_its_batch() -> None:
    mixture = Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.4, 0.4])
    x, seen = torch.linspace(-2, 2, 6)[:, None], []
    settings: dict[str, Any] = {"step_size": 0.05, "seed": 4}
    whole = langevin(mixture.score, x, steps=12, watch=lambda k, x: seen.append(k), **settings)
    half = langevin(mixture.score, x, steps=5, **settings)
    assert torch.equal(
        langevin(mixture.score, half, steps=7, first=5, **settings), whole
    ) and seen == list(range(12))
    alone = langevin(mixture.score, x[4:], steps=12, sample_ids=torch.tensor([4, 5]), **settings)
    assert torch.equal(alone, whole[4:])
    for wrong, message in [
        ({"step_size": 0.0}, "step_size > 0"),
        ({"step_size": torch.ones(3)}, r"a number or a tensor \[6\]"),
        ({"steps": -1}, "steps >= 0"),
        ({"score": lambda x: x[:2]}, "a score of shape"),
    ]:
        with pytest.raises(
            ValueError, match="fastdiff.theory.score.langevin: expected.*" + message
        ):
            langevin(**{"score": mixture.score, "x": x, "steps": 1, **settings, **wrong})  # type: ignore[arg-type]


def test_a_samples_step_follows_its_own_norm() -> None:
    score, z = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(4, 3, 5, dtype=torch.float64)
    lengths = torch.tensor([3.5, 1e-9, 4.0, 1e9], dtype=torch.float64)  # sqrt(15)/3.5 is 1.1
    score *= (lengths / score.flatten(1).norm(dim=1)).view(4, 1, 1)
    c = step_sizes(score, snr=0.2, sigma=0.8)
    r = np.clip(
        np.sqrt(15) / np.linalg.norm(score.numpy().reshape(4, -1), axis=1), 0.8, LIMIT * 0.8
    )
    np.testing.assert_allclose(c, 2 * (0.2 * r) ** 2, rtol=1e-12)
    assert r[1] == LIMIT * 0.8 and r[3] == 0.8 and 0.8 < r[0] < LIMIT * 0.8
    moved = move(score, score, z, c)
    np.testing.assert_allclose(
        moved[1], score[1] * (1 + c[1]) + math.sqrt(2 * c[1]) * z[1], rtol=1e-12
    )


@pytest.mark.parametrize("space", ["ve", "vp"])
@pytest.mark.parametrize("ratio", ["level", "norm"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_annealing_is_the_recursion_at_falling_levels(space: str, ratio: str, backend: str) -> None:
    """On correlated Gaussian data, with noise from the contract.

    The ratio `level` runs as a plan of fused steps on every backend.
    """
    schedule = (
        Schedule.ve(100, sigma_min=0.05, sigma_max=5.0) if space == "ve" else Schedule.vp(1000)
    )
    data = Gaussian([0.3, -0.2], [[0.5, 0.3], [0.3, 0.4]], kind="epsilon")
    x_T = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.1, 0.1]], dtype=torch.float64)
    with fastdiff.use(backend):
        got = annealed_langevin(
            data,
            schedule,
            x_T=x_T,
            levels=6,
            steps=3,
            snr=0.2,
            ratio=ratio,
            seed=8,
            dtype=torch.float64,
        )
    ends = (math.log(schedule.at(len(schedule.sigma) - 1).rho), math.log(schedule.at(0).rho))
    x, number = x_T.numpy(), 0
    mean, covariance = data.mean.numpy(), data.covariance.numpy()
    for log_rho in np.linspace(*ends, 6):
        t = schedule.at_log_snr(-2 * log_rho)
        blurred = np.linalg.inv(t.alpha**2 * covariance + t.sigma**2 * np.eye(2))
        for k in range(3):
            score, z = -(x - t.alpha * mean) @ blurred, draw((3, 2), 8, number)
            if k == 0:
                r = np.sqrt(2) / np.linalg.norm(score, axis=1)
                r = np.clip(r, t.sigma, LIMIT * t.sigma)[:, None] if ratio == "norm" else t.sigma
            c, number = 2 * (0.2 * r) ** 2, number + 1
            x = x + c * score + np.sqrt(2 * c) * z
    score = -(x - t.alpha * mean) @ blurred
    np.testing.assert_allclose(got, (x + t.sigma**2 * score) / t.alpha, rtol=1e-9, atol=1e-10)


def test_annealing_finds_the_weights_that_langevin_misses() -> None:
    """Two modes far apart with weights nine to one.

    Langevin dynamics stays at the mode where it starts; annealing finds the weights.
    """
    mixture = Mixture([0.9, 0.1], [[-4.0], [4.0]], [0.5, 0.5], kind="epsilon")
    stuck = langevin(mixture.score, torch.full((500, 1), 4.0), steps=200, step_size=0.05, seed=1)
    assert bool((stuck > 0).all())
    schedule = Schedule.ve(100, sigma_min=0.1, sigma_max=30.0)
    for ratio in ("level", "norm"):
        x = annealed_langevin(
            mixture, schedule, (800, 1), levels=40, steps=16, snr=0.2, ratio=ratio, seed=1
        )
        assert abs(float((x > 0).double().mean()) - 0.1) < 0.05, ratio
        assert abs(float(x[x < 0].mean()) + 4.0) < 0.1 and float(x[x < 0].std()) == pytest.approx(
            0.5, rel=0.2
        )


@pytest.mark.parametrize("ratio", ["level", "norm"])
@pytest.mark.parametrize("space", ["ve", "vp"])
def test_the_defaults_find_weights_and_widths(space: str, ratio: str) -> None:
    """Two modes of weights 0.85 and 0.15: both and their widths, and the report says so.

    With a quarter of the steps and half their size, the modes are too wide, and the report says by
    how much: 1 + (excess of the variance)/(blurred variance) in each dimension.
    """
    schedule = {
        "ve": Schedule.ve(100, sigma_min=0.1, sigma_max=30.0),
        "vp": Schedule.vp(1000),
    }[space]
    data = Mixture([0.85, 0.15], [[-2.0, 0.0], [2.0, 0.0]], [0.5, 0.5], kind="epsilon")
    x, info = annealed_langevin(data, schedule, (2000, 2), ratio=ratio, seed=1, return_info=True)
    left = x[:, 0] < 0
    assert abs(float(left.double().mean()) - 0.85) < 0.05
    assert x[left].std(0).numpy() == pytest.approx(0.5, rel=0.08)
    width, error = info.width()
    assert abs(width - 1) < 4 * error < 0.2

    few: dict[str, Any] = {"levels": 50, "steps": 5, "snr": 0.16, "ratio": ratio, "seed": 1}
    wide, info = annealed_langevin(data, schedule, (2000, 2), return_info=True, **few)
    excess = float(wide[wide[:, 0] < 0].var(0).mean()) / 0.25
    width, error = info.width()
    assert excess > 1.4 and width - 1 > 5 * error
    same = annealed_langevin(data, schedule, (2000, 2), **few)
    torch.testing.assert_close(wide, same, rtol=1e-4, atol=1e-4)


def test_the_report_is_the_variance_ratio_of_a_gaussian() -> None:
    """Without steps the state is x_T: its width is the mean of (x_T - m)²/(s² + sigma²)."""
    schedule = Schedule.ve(100, sigma_min=0.1, sigma_max=30.0)
    data = Mixture([1.0], [[0.5, 0.5, 0.5]], [0.5], kind="epsilon")
    noise = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_T = 0.5 + 0.7 * noise
    x, info = annealed_langevin(
        data,
        schedule,
        x_T=x_T,
        steps=0,
        seed=3,
        denoise=False,
        dtype=torch.float64,
        return_info=True,
    )
    assert torch.equal(x, x_T)
    blurred = 0.25 + schedule.sigma[0] ** 2
    torch.testing.assert_close(
        info.square, (x_T - 0.5).square().mean(1) / blurred**2, rtol=1e-9, atol=1e-12
    )
    assert abs(float(info.slope.mean()) * blurred - 1) < 5 * math.sqrt(2 / 1200)
    width, error = info.width()
    assert abs(width - 0.49 / blurred) < 5 * error


def test_in_many_dimensions_the_law_is_the_recursions() -> None:
    """V <- (1 - c/V_t)² V + 2c in many dimensions, where norms concentrate.

    The ratio `norm` follows the blurred data and comes closer to their variance.
    """
    n, s2, errors = 1024, 0.25, {}
    data = Mixture([1.0], np.full((1, n), 0.2), [0.5], kind="epsilon")
    schedule = Schedule.ve(100, sigma_min=0.02, sigma_max=20.0)
    for ratio in ("level", "norm"):
        x = annealed_langevin(
            data, schedule, (8, n), levels=60, steps=4, snr=0.16, ratio=ratio, seed=2, denoise=False
        )
        variance = 400.0
        for log_sigma in np.linspace(math.log(20), math.log(0.02), 60):
            sigma2 = math.exp(2 * log_sigma)
            blurred = s2 + sigma2
            scale = (
                blurred**2 / variance if ratio == "norm" else sigma2
            )  # D/||score||² where the state has `variance`
            c = (
                2
                * 0.16**2
                * min(max(scale, sigma2), (LIMIT if ratio == "norm" else 1.0) ** 2 * sigma2)
            )
            for _ in range(4):
                variance = (1 - c / blurred) ** 2 * variance + 2 * c
        assert (
            float(x.var()) == pytest.approx(variance, rel=0.06)
            and abs(float(x.mean()) - 0.2) < 0.05
        )
        errors[ratio] = variance - s2
    assert 0 < errors["norm"] < 0.5 * errors["level"]


def test_samples_do_not_depend_on_their_batch_and_arguments_are_checked() -> None:
    mixture, schedule = (
        Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.3]], [0.3, 0.4]),
        Schedule.vp(1000),
    )
    settings: dict[str, Any] = {"levels": 8, "steps": 2, "seed": 3, "prediction_type": "v"}
    for ratio in ("norm", "level"):
        whole = annealed_langevin(mixture, schedule, (5, 2), ratio=ratio, **settings)
        alone = annealed_langevin(
            mixture, schedule, (1, 2), ratio=ratio, sample_ids=[3], **settings
        )
        assert torch.equal(alone[0], whole[3])
    for wrong, message in [
        ({"ratio": "batch"}, "expected ratio in"),
        ({"snr": 0.6}, r"expected snr in \(0, 0.5\), got 0.6"),
        ({"steps": -1}, "expected steps >= 0"),
    ]:
        with pytest.raises(ValueError, match="fastdiff.theory.score.annealed_langevin: " + message):
            annealed_langevin(mixture, schedule, (1, 2), **settings | wrong)
