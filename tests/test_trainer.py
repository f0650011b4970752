"""Training: reproducible batches, exact resumption, averages, and a loss that falls on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import Sampler, Schedule, prediction, reference
from fastdiff.data import load_fashion_mnist
from fastdiff.models import UNet
from fastdiff.trainer import CHECKPOINT, LOSSES, Settings, Trainer

DATA = load_fashion_mnist()
SMALL = {"widths": (8, 16), "emb": 16, "groups": 8, "mid_blocks": 1}


def trainer(steps: int = 6, **changes: object) -> Trainer:
    torch.manual_seed(0)
    settings = Settings(**{"steps": steps, "batch_size": 8, "warmup": 2, "seed": 3, **changes})  # type: ignore[arg-type]
    return Trainer(UNet(**SMALL), Schedule.cosine(1000), DATA, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_a_batch_is_the_oracle_s(kind: str) -> None:
    """x_t and the target from the contract alone: stream 2 noise, stream 4 times, the epoch's permutation."""
    t = trainer(prediction_type=kind)
    x_t, times, y, target = t.batch(5)
    index = np.random.default_rng([3, 0]).permutation(9000)[40:48]
    counters = np.array([[0, 5, i, 4 << 24] for i in index])
    words = reference.philox4x32(counters, [3, 0])
    assert times.tolist() == [int(w) * 1000 >> 32 for w in words[:, 0]]
    eps = reference.randn((8, 1, 28, 28), seed=3, sample_ids=index, step=5, stream=2)
    x0 = DATA.images.numpy()[index] / np.float32(127.5) - np.float32(1)
    schedule = Schedule.cosine(1000)
    assert np.array_equal(x_t.numpy(), reference.q_sample(x0, times.numpy(), schedule.alpha, schedule.sigma, noise=eps))
    a, s = (v[times].astype(np.float32).reshape(-1, 1, 1, 1) for v in (schedule.alpha, schedule.sigma))
    np.testing.assert_allclose(target.numpy(), prediction.target(kind, x0, eps, a, s), rtol=1e-6, atol=1e-6)
    kept = ((words[:, 1] >> 8) | 1) * 2.0**-24 >= 0.1
    assert y.tolist() == np.where(kept, DATA.labels.numpy()[index], 10).tolist()


def test_labels_are_dropped_at_the_stated_rate() -> None:
    t = trainer(batch_size=2000, label_dropout=0.25)
    dropped = torch.cat([t.batch(step)[2] == 10 for step in range(4)]).double().mean()
    assert abs(float(dropped) - 0.25) < 5 * (0.25 * 0.75 / 8000) ** 0.5


def test_every_example_is_seen_once_an_epoch() -> None:
    t = trainer(batch_size=1000)
    seen = torch.cat([t._examples(step) for step in range(9)])
    assert sorted(seen.tolist()) == list(range(9000))
    assert not torch.equal(t._examples(9), t._examples(0)), "another epoch, another order"


def test_resumed_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    straight = trainer()
    straight.run(tmp_path / "a", log_every=1, progress=False)
    first = trainer()
    first.run(tmp_path / "b", log_every=1, progress=False, until=3)
    assert not (tmp_path / "b" / "config.json").exists(), "an unfinished run is no model yet"
    second = trainer()
    second.resume(tmp_path / "b")
    assert second.step == 3
    second.run(tmp_path / "b", log_every=1, progress=False)
    for name in ("model.safetensors", LOSSES):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert second.losses == straight.losses and len(second.losses) == 6


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer().run(tmp_path, progress=False, until=1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(
        ValueError, match=r"fastdiff\.Trainer: expected the settings .* Use its settings or another folder\.$"
    ):
        trainer(lr=1e-2).resume(tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_the_average_follows_its_recursion() -> None:
    t = trainer(ema=0.5)
    expected = [p.clone() for p in t.model.parameters()]
    for step in range(1, 4):
        t.train_step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, t.model.parameters(), strict=True)]
    for e, p in zip(expected, t.ema.parameters(), strict=True):
        torch.testing.assert_close(p, e, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_rises_and_falls() -> None:
    t = trainer(steps=100, lr=1.0)
    rates = [t.learning_rate(s) for s in range(100)]
    assert rates[0] == pytest.approx(1 / 3) and max(rates) > 0.99 and rates[-1] < 1e-3


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_the_loss_falls_and_the_folder_samples(kind: str, tmp_path: Path) -> None:
    t = trainer(steps=40, batch_size=32, warmup=5, lr=3e-3, prediction_type=kind, ema=0.9)
    t.run(tmp_path, log_every=5, progress=False)
    assert t.losses[-1][1] < 0.7 * t.losses[0][1]
    sampler = Sampler.from_pretrained(tmp_path, steps=3)
    x = sampler.sample((2, 1, 28, 28), seed=0, cond={"y": torch.tensor([0, 1])})
    assert float(x.abs().max()) <= 1.0 and sampler.plan.info["prediction_type"] == kind


def test_a_diverged_loss_stops() -> None:
    t = trainer()
    with torch.no_grad():
        next(t.model.parameters()).fill_(torch.nan)
    with pytest.raises(RuntimeError, match="expected a finite loss, got nan at step 0"):
        t.train_step()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"lr": -1.0}, r"expected lr > 0, got -1\.0"),
        ({"ema": 1.0}, r"expected ema in \[0, 1\), got 1\.0"),
        ({"label_dropout": 2.0}, r"expected label_dropout in \[0, 1\], got 2\.0"),
        ({"batch_size": 9001}, "expected batch_size <= 9000 examples, got 9001"),
        ({"prediction_type": "eps"}, "expected prediction_type in"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**changes)
