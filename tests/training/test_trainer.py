"""Training: reproducible batches, exact resumption, averages, and a falling loss on real images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdiff import Sampler, Schedule, Trainer
from fastdiff.data import load_fashion_mnist, load_toy
from fastdiff.models import UNet
from fastdiff.theory.systems import Denoiser
from fastdiff.training import CHECKPOINT, LOSSES, Settings
from fastdiff.training.folder import read

DATA = load_fashion_mnist()
SMALL = {"widths": (8, 16), "emb": 16, "groups": 8, "mid_blocks": 1}


def trainer(steps: int = 6, kind: str = "v", **changes: object) -> Trainer:
    torch.manual_seed(0)
    settings = Settings(**{"steps": steps, "batch_size": 8, "warmup": 2, "seed": 3, **changes})  # type: ignore[arg-type]
    system = Denoiser(UNet(**SMALL), Schedule.cosine(1000), kind)  # type: ignore[arg-type]
    return Trainer(system, DATA, settings)


class Line(nn.Module):
    """y = w x on points, with a count of its batches: a buffer that training changes."""

    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, object] = {}
        self.w = nn.Parameter(torch.tensor([0.5, -0.25]))
        self.register_buffer("batches", torch.zeros(2))

    def loss(
        self, x0: Tensor, labels: Tensor, *, seed: int, sample_ids: Tensor, step: int
    ) -> Tensor:
        self.batches += torch.tensor([1.0, float(step)])
        return (self.w * x0).square().sum(1) * (1 + 0.1 * self.batches[0])


def line(steps: int = 5, **changes: object) -> Trainer:
    settings = {"steps": steps, "batch_size": 4, "warmup": 0, "lr": 0.1, "ema": 0.5, **changes}
    return Trainer(Line(), load_toy("moons", n=40), Settings(**settings))  # type: ignore[arg-type]


def test_until_zero_takes_no_step(tmp_path: Path) -> None:
    run = line()
    run.run(tmp_path, until=0, progress=False)
    assert run.step == 0 and (tmp_path / CHECKPOINT).exists()


class Undescribed(Line):
    """A system whose config raises, as that of a `DiffusionHVAE` of a user's network does."""

    def __init__(self) -> None:
        super().__init__()
        del self.__dict__["config"]

    def __getattribute__(self, name: str) -> Any:
        if name == "config":
            raise TypeError("expected a network of fastdiff.models")
        return super().__getattribute__(name)


def test_a_system_without_a_description_has_checkpoints(tmp_path: Path) -> None:
    settings = Settings(steps=2, batch_size=4, lr=0.1)
    run = Trainer(Undescribed(), load_toy("moons", n=40), settings)
    run.run(tmp_path, until=1, progress=False)
    again = Trainer(Undescribed(), load_toy("moons", n=40), settings)
    again.resume(tmp_path)
    assert again.step == 1 and again.identity()["system"]["config"] is None


def assert_same_run(a: Path, b: Path) -> None:
    """Compares every bit of the models, curves and checkpoints, except the order of metadata."""
    for name in ("model.safetensors", "config.json", LOSSES):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    (tensors_a, metadata_a), (tensors_b, metadata_b) = read(a), read(b)
    assert metadata_a == metadata_b and tensors_a.keys() == tensors_b.keys()
    assert [k for k in tensors_a if not torch.equal(tensors_a[k], tensors_b[k])] == []


def test_every_example_is_seen_once_an_epoch() -> None:
    t = trainer(batch_size=1000)
    indices = torch.cat([t.examples(step) for step in range(9)])
    assert sorted(indices.tolist()) == list(range(9000))
    assert not torch.equal(t.examples(9), t.examples(0)), "the order differs between epochs"
    assert (
        t.examples(4).tolist()
        == np.random.default_rng([3, 0]).permutation(9000)[4000:5000].tolist()
    )


def test_a_step_is_adamw_s_on_the_clipped_mean() -> None:
    """Three steps in NumPy: the clipped gradient of the mean, and AdamW.

    (Kingma & Ba, algorithm 1, with weight decay.)
    """
    t = line(lr=0.05, clip_norm=0.02, weight_decay=0.1)
    w, m, v = np.array([0.5, -0.25]), np.zeros(2), np.zeros(2)
    for step in range(3):
        x = t.data.batch(t.examples(step))[0].double().numpy()
        gradient = (2 * w * (x**2)).mean(0) * (1 + 0.1 * (step + 1))
        norm = np.linalg.norm(gradient)
        loss, reported_norm = t.train_step()
        assert reported_norm == pytest.approx(norm, rel=1e-5)
        assert loss == pytest.approx(
            ((w * x) ** 2).sum(1).mean() * (1 + 0.1 * (step + 1)), rel=1e-5
        )
        gradient *= min(1, 0.02 / (norm + 1e-6))
        lr = 0.05 * 0.5 * (1 + np.cos(np.pi * step / 5))
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        w = w * (1 - lr * 0.1) - lr * (m / (1 - 0.9 ** (step + 1))) / (
            np.sqrt(v / (1 - 0.99 ** (step + 1))) + 1e-8
        )
        np.testing.assert_allclose(t.system.w.detach().numpy(), w, rtol=1e-5)


def test_a_resumed_run_equals_one_without_interruption(tmp_path: Path) -> None:
    straight = trainer()
    straight.run(tmp_path / "a", log_every=2, progress=False)
    first = trainer()
    first.run(tmp_path / "b", log_every=2, progress=False, until=3)
    assert not (tmp_path / "b" / "config.json").exists(), "an unfinished run has no model yet"
    second = trainer()
    second.resume(tmp_path / "b")
    assert second.step == 3
    second.run(tmp_path / "b", log_every=2, progress=False)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert second.losses == straight.losses and [e.step for e in second.losses] == [2, 4, 6]


def test_buffers_are_part_of_the_run(tmp_path: Path) -> None:
    straight = line()
    straight.run(tmp_path / "a", progress=False, until=5)
    line().run(tmp_path / "b", progress=False, until=2)
    second = line()
    second.resume(tmp_path / "b")
    assert second.system.batches.tolist() == [2.0, 1.0] and second.ema.batches.tolist() == [
        2.0,
        1.0,
    ]
    while second.step < 5:
        second.train_step()
    assert torch.equal(second.system.w, straight.system.w) and torch.equal(
        second.ema.w, straight.ema.w
    )
    assert second.system.batches.tolist() == [5.0, 10.0]


def test_a_time_limit_leaves_a_model_and_a_run_to_resume(tmp_path: Path) -> None:
    straight = trainer()
    straight.run(tmp_path / "a", progress=False)
    first = trainer()
    first.run(tmp_path / "b", progress=False, minutes=1e-9)
    assert first.step == 1
    x = Sampler.from_pretrained(tmp_path / "b", steps=2).sample(
        (1, 1, 28, 28), seed=0, cond={"y": torch.tensor([0])}
    )
    assert x.shape == (1, 1, 28, 28)
    assert '"stopped_at": 1' in (tmp_path / "b" / "config.json").read_text()
    second = trainer()
    second.resume(tmp_path / "b")
    second.run(tmp_path / "b", progress=False)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_stopped_run_has_its_checkpoint(tmp_path: Path) -> None:
    t = trainer()
    t.stopping = True
    t.run(tmp_path, progress=False)
    assert (
        t.step == 0 and (tmp_path / CHECKPOINT).exists() and not (tmp_path / "config.json").exists()
    )


def test_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    trainer().run(tmp_path, progress=False, until=1)
    left, foreign = (tmp_path / f".{n}.{'5' * 32}.tmp" for n in (CHECKPOINT, "notes.txt"))
    left.write_bytes(b"half"), foreign.write_bytes(b"mine")
    trainer().resume(tmp_path)
    assert not left.exists() and foreign.exists()


@pytest.mark.parametrize(
    "key, changes", [("settings", {"lr": 1e-2}), ("system", {"kind": "epsilon"})]
)
def test_another_run_s_checkpoint_is_refused(key: str, changes: dict, tmp_path: Path) -> None:
    trainer().run(tmp_path, progress=False, until=1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(
        ValueError,
        match=rf"fastdiff\.Trainer: expected the {key} .* Use its settings or another folder\.$",
    ):
        trainer(**changes).resume(tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_other_arithmetic_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer().run(tmp_path, progress=False, until=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.warns(UserWarning, match="expected threads .*, with which this run began, got 77"):
        trainer().resume(tmp_path)


def test_the_average_follows_its_recursion() -> None:
    t = trainer(ema=0.5)
    expected = [p.clone() for p in t.system.parameters()]
    for step in range(1, 4):
        t.train_step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * p.detach()
            for e, p in zip(expected, t.system.parameters(), strict=True)
        ]
    for e, p in zip(expected, t.ema.parameters(), strict=True):
        torch.testing.assert_close(p, e, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_rises_and_falls() -> None:
    settings = Settings(steps=100, lr=1.0, warmup=2)
    rates = [settings.learning_rate(s) for s in range(100)]
    assert rates[0] == pytest.approx(1 / 3) and max(rates) > 0.99 and rates[-1] < 1e-3


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_the_loss_falls_and_the_folder_samples(kind: str, tmp_path: Path) -> None:
    t = trainer(steps=40, batch_size=32, warmup=5, lr=3e-3, kind=kind, ema=0.9)
    last = t.run(tmp_path, log_every=5, progress=False)
    assert t.losses[-1].loss == last < 0.7 * t.losses[0].loss
    with open(tmp_path / LOSSES, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == list(range(5, 45, 5)) and float(
        rows[-1]["loss"]
    ) == pytest.approx(last, abs=1e-6)
    assert float(rows[1]["lr"]) > float(rows[-1]["lr"]) > 0 and all(
        float(r["grad_norm"]) > 0 for r in rows
    )
    sampler = Sampler.from_pretrained(tmp_path, steps=3)
    x = sampler.sample((2, 1, 28, 28), seed=0, cond={"y": torch.tensor([0, 1])})
    assert float(x.abs().max()) <= 1.0 and sampler.plan.info["prediction_type"] == kind


def test_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    t = trainer()
    t.run(tmp_path, log_every=1)
    shown = capsys.readouterr().err.splitlines()
    assert (
        shown[-1].startswith("step 6/6  loss ")
        and "img/s" in shown[-1]
        and "grad_norm" in shown[-1]
    )


def test_a_diverged_loss_stops() -> None:
    t = trainer()
    with torch.no_grad():
        next(t.system.parameters()).fill_(torch.nan)
    with pytest.raises(
        RuntimeError,
        match="expected a finite loss and gradient, got nan and nan at step 0. Lower lr",
    ):
        t.train_step()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"lr": -1.0}, r"expected lr > 0, got -1\.0"),
        ({"ema": 1.0}, r"expected ema in \[0, 1\), got 1\.0"),
        ({"weight_decay": -1.0}, r"expected weight_decay >= 0, got -1\.0"),
        ({"batch_size": 9001}, "expected batch_size <= 9000 examples, got 9001"),
        ({"kind": "eps"}, "expected prediction_type in"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**changes)


def test_objects_that_are_not_systems_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"expected a system with a loss, got a UNet\. Wrap a network"
    ):
        Trainer(UNet(**SMALL), DATA, Settings(steps=1))  # type: ignore[arg-type]

    class Mean(Line):
        def loss(self, *args: object, **kwargs: object) -> Tensor:
            return super().loss(*args, **kwargs).mean()  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"expected a loss \[4\], got \[\]"):
        Trainer(Mean(), load_toy("moons", n=40), Settings(steps=1, batch_size=4)).train_step()
