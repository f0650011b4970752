"""Averages with power-function profiles: their closed form, and averages of other lengths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainers import denoiser
from torch import nn

from fastdiff.cli import main
from fastdiff.pretrained import load_system
from fastdiff.pretrained.files import read_tensors
from fastdiff.training import CHECKPOINT, posthoc
from fastdiff.training.averages import weights, write_snapshot
from fastdiff.training.folder import read, steps_of
from fastdiff.training.profiles import (
    PowerAverage,
    combination,
    exponent,
    product,
    relative_length,
)

STEPS = 400


def closed_form(trajectory: np.ndarray, sigma_rel: float) -> float:
    """Σ_k θ_k (k^(γ+1) - (k-1)^(γ+1))/t^(γ+1): the integral over weights that stay for a step."""
    power = exponent(sigma_rel) + 1
    edges = (np.arange(len(trajectory) + 1) / len(trajectory)) ** power
    return float(np.diff(edges) @ trajectory)


def trajectory(columns: int = 3) -> np.ndarray:
    """Weights [STEPS, columns] on their way: a decay, an oscillation and noise."""
    t = np.arange(1, STEPS + 1)[:, None]
    phase = np.arange(columns)
    noise = np.random.default_rng(0).standard_normal((STEPS, columns))
    return np.exp(-t / 90) + 0.3 * np.sin(t / 25 + phase) + 0.2 * noise + 0.5


@pytest.mark.parametrize("gamma, sigma_rel", [(16.97, 0.05), (6.94, 0.1), (0.0, 12**-0.5)])
def test_lengths_of_the_paper(gamma: float, sigma_rel: float) -> None:
    """γ = 16.97 and 6.94 for 5 % and 10 % (Karras et al. 2024, section 3.1)."""
    assert relative_length(gamma) == pytest.approx(sigma_rel, rel=1e-3)
    if gamma:
        assert exponent(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.123, 0.28])
def test_a_length_is_the_profile_s_deviation(sigma_rel: float) -> None:
    gamma, n = exponent(sigma_rel), 200_000
    assert relative_length(gamma) == pytest.approx(sigma_rel, rel=1e-9)
    t = (np.arange(n) + 0.5) / n
    p = (gamma + 1) * t**gamma / n
    mean = (p * t).sum()
    assert math.sqrt((p * (t - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25])
def test_the_recursion_is_the_closed_form(sigma_rel: float) -> None:
    path = trajectory()
    parameter = torch.tensor(np.full(3, 99.0))
    average = PowerAverage([parameter], sigma_rel)
    for step, value in enumerate(path, 1):
        parameter.copy_(torch.from_numpy(value))
        average.update([parameter], step)
    expected = [closed_form(path[:, i], sigma_rel) for i in range(3)]
    np.testing.assert_allclose(average.values[0].numpy(), expected, rtol=1e-9)


def test_products_are_integrals() -> None:
    n, end = 400_000, 300.0
    t = (np.arange(n) + 0.5) * end / n
    for (t_a, gamma_a), (t_b, gamma_b) in (((100, 17), (300, 7)), ((300, 17), (300, 7))):
        a = np.where(t <= t_a, (gamma_a + 1) / t_a * (t / t_a) ** gamma_a, 0)
        b = np.where(t <= t_b, (gamma_b + 1) / t_b * (t / t_b) ** gamma_b, 0)
        numbers = (np.float64(v) for v in (t_a, gamma_a, t_b, gamma_b))
        assert float(product(*numbers)) == pytest.approx((a * b).sum() * end / n, rel=1e-4)  # type: ignore[arg-type]


def test_a_stored_profile_is_its_own_combination() -> None:
    stored = [(t, exponent(s)) for t in range(25, STEPS + 1, 25) for s in (0.05, 0.1)]
    for i in (3, 16, 30, 31):
        factors, error = combination(stored, stored[i])
        np.testing.assert_allclose(factors, np.eye(len(stored))[i], atol=1e-5)
        assert error < 1e-6
    factors, _ = combination(stored, (STEPS, exponent(0.25)))
    assert factors.sum() == pytest.approx(1, abs=1e-9)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    parameter = torch.zeros(3)
    averages = [PowerAverage([parameter], s) for s in (0.05, 0.1)]
    for step, value in enumerate(trajectory(), 1):
        parameter.copy_(torch.from_numpy(value).float())
        for average in averages:
            average.update([parameter], step)
        if step % (STEPS // 16) == 0:
            write_snapshot(folder, step, averages, ["w"], {"counted": torch.tensor(step)})
    return folder


@pytest.mark.parametrize("sigma_rel, step", [(0.05, None), (0.1, None), (0.1, 200), (0.05, 350)])
def test_tracked_averages_are_reproduced(
    snapshots: Path, sigma_rel: float, step: int | None
) -> None:
    state, error = weights(snapshots, sigma_rel, step=step)
    expected = [closed_form(trajectory()[: step or STEPS, i], sigma_rel) for i in range(3)]
    np.testing.assert_allclose(state["w"].numpy(), expected, rtol=1e-4)
    assert error < 1e-6 and int(state["counted"]) == (step or STEPS)


# length: the limit of the profile's error; it grows outside of the tracked lengths 0.05 and 0.1
LIMITS = {0.06: 0.004, 0.075: 0.004, 0.09: 0.004, 0.12: 0.004, 0.15: 0.01, 0.2: 0.03, 0.25: 0.08}


@pytest.mark.parametrize("sigma_rel", LIMITS)
def test_other_lengths_are_near_the_directly_computed_averages(
    snapshots: Path, sigma_rel: float
) -> None:
    """Within the profile's error of the deviation of the path, which is stated with the result."""
    state, error = weights(snapshots, sigma_rel)
    path = trajectory()
    expected = np.array([closed_form(path[:, i], sigma_rel) for i in range(3)])
    limit = LIMITS[sigma_rel]
    assert error < limit
    assert np.abs(state["w"].numpy() - expected).max() < limit * path.std()
    # and not near the tracked ones
    nearest = min((0.05, 0.1), key=lambda s: abs(s - sigma_rel))
    other = np.array([closed_form(path[:, i], nearest) for i in range(3)])
    assert np.abs(state["w"].numpy() - expected).max() < 0.2 * np.abs(other - expected).max()


def test_a_run_s_averages_and_their_combination(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupted run has the snapshots of the straight one, and `fastdiff ema` uses them."""
    settings = {"steps": 12, "ema_rel": (0.05, 0.1), "ema_snapshots": 2}
    straight, first, second = (denoiser(**settings) for _ in range(3))
    direct = PowerAverage(straight.parameters, 0.07)
    kept = straight.train_step

    def step(*arguments: Any) -> tuple[float, float]:
        result = kept(*arguments)
        direct.update(straight.parameters, straight.step)
        return result

    straight.train_step = step  # type: ignore[method-assign]
    straight.run(tmp_path / "a", progress=False)
    first.run(tmp_path / "b", progress=False, until=5)
    second.resume(tmp_path / "b")
    second.run(tmp_path / "b", progress=False)
    ours, theirs = (steps_of(tmp_path / n / "ema") for n in ("a", "b"))
    assert list(ours) == list(theirs) == [2, 4, 6, 8, 10, 12]
    for k in ours:
        a, b = (read_tensors(p[k])[0] for p in (ours, theirs))
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert any(k.startswith("average.1.") for k in read(tmp_path / "b")[0])
    system = posthoc(tmp_path / "a", 0.07)
    for p, q, last in zip(
        system.parameters(), direct.values, straight.system.parameters(), strict=True
    ):
        wrong, moved = ((v - q).detach().abs().max() for v in (p, last))
        assert float(wrong) < 0.2 * float(moved) + 1e-6
    out = tmp_path / "averaged"
    assert main(["ema", str(tmp_path / "a"), "--sigma-rel", "0.07", "--out", str(out)]) == 0
    assert "sigma_rel 0.07" in capsys.readouterr().out
    loaded: nn.Module = load_system(out)
    for p, q in zip(system.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_checkpoint_becomes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that has not ended, and of an earlier step; the weights are the averages of then."""
    run, out = tmp_path / "run", str(tmp_path / "model")
    trainer = denoiser(steps=9)
    trainer.run(run, progress=False, until=2, save_every=1)
    then = {k: v.clone() for k, v in trainer.ema.state_dict().items()}
    trainer.run(run, progress=False, until=4, save_every=2)
    file = f"checkpoints/{steps_of(run / 'checkpoints')[2].name}"
    assert main(["ema", str(run), "--checkpoint", file, "--out", out]) == 0
    assert "the averaged weights after 2 steps" in capsys.readouterr().out
    loaded: nn.Module = load_system(out)
    assert all(torch.equal(v, then[k]) for k, v in loaded.state_dict().items())
    assert main(["ema", str(run), "--checkpoint", file, "--step", "1", "--out", out]) == 2
    assert main(["ema", str(run), "--checkpoint", "none.safetensors", "--out", out]) == 2
    assert "none.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--sigma-rel", "0.5"), r"expected sigma_rel in (0, 0.28], got 0.5"),
        (("--sigma-rel", "0.1"), "expected snapshots of averages in"),
        (("--sigma-rel", "0.1", "--step", "1"), "expected snapshots of averages up to step 1 in"),
    ],
)
def test_averages_that_cannot_be(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    denoiser(steps=1).run(tmp_path, progress=False)
    assert main(["ema", str(tmp_path), *arguments, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_foreign_file_among_the_snapshots(tmp_path: Path) -> None:
    denoiser(steps=2, ema_rel=(0.1,)).run(tmp_path, progress=False)
    (tmp_path / "ema" / "step-000000003.safetensors").write_bytes(
        (tmp_path / CHECKPOINT).read_bytes()
    )
    with pytest.raises(ValueError, match="expected a snapshot of averages in .* Remove it"):
        posthoc(tmp_path, 0.1)
