"""What a run writes on the way: JSON lines, TensorBoard, Weights & Biases, samples, evaluations."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_trainers import denoiser, learning

from fastdiff import Trainer
from fastdiff.data import load_fashion_mnist, load_toy
from fastdiff.theory.registry import SYSTEMS
from fastdiff.theory.systems.presets import make
from fastdiff.training import Settings
from fastdiff.training.folder import read
from fastdiff.training.watch import evaluate


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdiff.training.watch.SAMPLES", 8)
    monkeypatch.setattr("fastdiff.training.watch.STEPS", 4)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_json_lines_are_always_written_and_continue(tmp_path: Path) -> None:
    learning(steps=8).run(tmp_path, progress=False, log_every=1, until=4, save_every=2)
    file = tmp_path / "log.jsonl"
    # a run that was killed after it logged more than it saved, within a line
    with open(file, "a") as log:
        log.write('{"time": 0, "step": 5, "loss": 1.0}\n{"time": 0, "st')
    again = learning(steps=8)
    again.resume(tmp_path)
    again.run(tmp_path, progress=False, log_every=1)
    rows = lines(tmp_path)
    assert [r["step"] for r in rows] == list(range(1, 9))
    assert [r["loss"] for r in rows] == [e.loss for e in again.losses]
    for row in rows:
        assert {"time", "grad_norm", "lr", "images_per_second", "memory"} <= row.keys()
        assert row["images_per_second"] > 0 and row["memory"] > 1e6


class Memory:
    """A logger of one's own."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.sheets: list[int] = []
        self.closed = False

    def log(self, step: int, values: Any) -> None:
        self.rows.append((step, dict(values)))

    def images(self, step: int, grid: Image.Image) -> None:
        assert grid.size[0] > 8
        self.sheets.append(step)

    def close(self) -> None:
        self.closed = True


def test_a_logger_of_one_s_own(tmp_path: Path) -> None:
    logger, trainer = Memory(), denoiser(steps=4, batch_size=4)
    trainer.held_out = load_fashion_mnist("bundled-test")
    trainer.run(
        tmp_path,
        progress=False,
        log_every=2,
        log=[logger],
        sample_every=2,
        eval_every=2,
        eval_images=4,
    )
    assert [(s, sorted(v)[0]) for s, v in logger.rows] == [
        *((2, "grad_norm"), (2, "eval"), (4, "grad_norm"), (4, "eval"))
    ]
    assert logger.sheets == [2, 4] and logger.closed


def test_watching_changes_no_bit_and_is_the_same_each_time(tmp_path: Path) -> None:
    plain, watched, again = (denoiser(steps=4, batch_size=4) for _ in range(3))
    plain.run(tmp_path / "plain", progress=False)
    for trainer, name in ((watched, "a"), (again, "b")):
        trainer.held_out = load_fashion_mnist("bundled-test")
        trainer.run(tmp_path / name, progress=False, sample_every=2, eval_every=3, eval_images=4)
    ours, theirs = (read(tmp_path / n) for n in ("plain", "a"))
    assert [k for k in ours[0] if not torch.equal(ours[0][k], theirs[0][k])] == []
    assert ours[1] == theirs[1]
    sheets = sorted((tmp_path / "a" / "samples").iterdir())
    assert [p.name for p in sheets] == ["step-000000002.png", "step-000000004.png"]
    for sheet in sheets:
        assert sheet.read_bytes() == (tmp_path / "b" / "samples" / sheet.name).read_bytes()
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    evaluations = [r for r in lines(tmp_path / "a") if "eval" in r]
    assert [r["step"] for r in evaluations] == [3, 4] and evaluations[0]["eval_unit"] == "bits/dim"
    assert [r["eval"] for r in lines(tmp_path / "b") if "eval" in r] == [
        r["eval"] for r in evaluations
    ]


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_is_sampled_and_evaluated_on_the_way(name: str, tmp_path: Path) -> None:
    """The unit of the loss is shown; a classifier has no samples, which is said before a step."""
    images = name in ("classifier", "superres")
    data = load_fashion_mnist() if images else load_toy("moons", n=64)
    options: dict[str, Any] = {"widths": (8,), "emb": 8} if images else {"widths": (8,)}
    points: dict[str, Any] = dict.fromkeys(("score", "unet"), {"width": 8, "depth": 1})
    points["hvae"] = {"widths": (8, 8)}
    torch.manual_seed(0)
    system = make(name, data, **points.get(name, options))
    held_out = load_fashion_mnist("bundled-test") if images else load_toy("moons", "test", n=64)
    trainer = Trainer(system, data, Settings(steps=2, batch_size=4), held_out=held_out)
    assert isinstance(system.loss_unit, str)
    sampled = name != "classifier"
    if not sampled:
        with pytest.raises(ValueError, match="expected a system that draws samples"):
            trainer.run(tmp_path, progress=False, sample_every=2)
        assert trainer.step == 0
    every = 2 if sampled else 0
    trainer.run(tmp_path, progress=False, sample_every=every, eval_every=2, eval_images=4)
    if sampled:
        with Image.open(tmp_path / "samples" / "step-000000002.png") as picture:
            assert min(picture.size) > 50 and len(set(picture.convert("L").tobytes())) > 1
    (row,) = [r for r in lines(tmp_path) if "eval" in r]
    assert row["eval_unit"] == ("bits/dim" if name == "superres" else "nats")
    assert abs(row["eval"]) < 1e4


def test_an_evaluation_is_the_mean_of_the_bound() -> None:
    data = load_toy("moons", "test", n=100)
    torch.manual_seed(0)
    system = make("vae", data, widths=(8,)).eval()
    value, unit = evaluate(system, data, 70)
    x0, _ = data.batch(torch.arange(70))
    with torch.no_grad():
        terms = system.bound(x0, seed=0, sample_ids=torch.arange(70))
    assert unit == "nats"
    assert value == pytest.approx(float(sum(v.double() for v in terms.values()).mean()), rel=1e-5)


def test_the_live_line_has_the_unit_and_the_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    denoiser(steps=2, batch_size=4).run(tmp_path, log_every=1)
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("step 2/2  loss ") and " MSE  grad_norm" in shown
    assert "img/s" in shown and shown.endswith(" MiB")


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = denoiser(steps=4, batch_size=4)
    trainer.run(tmp_path, progress=False, log_every=2, log=["tensorboard"], sample_every=4)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (e.step, pytest.approx(e.loss, rel=1e-6)) for e in trainer.losses
    ]
    assert [e.step for e in events.Images("samples")] == [4]


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs wandb")
def test_wandb_gets_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    learning(steps=2).run(tmp_path, progress=False, log_every=1, log=["wandb"], until=1)
    again = learning(steps=2)
    again.resume(tmp_path)
    again.run(tmp_path, progress=False, log_every=1, log=["wandb"])
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files and all(b"grad_norm" in file.read_bytes() for file in files)
    assert len({file.name for file in files}) == 1, "a folder is one run of wandb"


def test_libraries_are_loaded_only_on_request(tmp_path: Path) -> None:
    script = (
        "import sys; from small_trainers import learning; from pathlib import Path;"
        f" learning(steps=1).run(Path({str(tmp_path)!r}), progress=False);"
        " print([m for m in ('tensorboard', 'wandb') if m in sys.modules])"
    )
    paths = ":".join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": paths}
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(RuntimeError, match=r"expected the package tensorboard .*\[tensorboard\]"):
        learning(steps=1).run(tmp_path / "x", log=["tensorboard"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"log": ["paper"]}, r"expected log in \['tensorboard', 'wandb'\], got 'paper'"),
        ({"keep": 0}, "expected keep >= 1, got 0"),
        ({"eval_every": 1}, "expected held_out data for eval_every, got none"),
        ({"eval_every": -1}, "expected eval_every >= 0, got -1"),
        ({"sample_every": 1}, "expected a system that draws samples, got a Learning"),
    ],
)
def test_records_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^fastdiff\.Trainer: {message}"):
        learning(steps=1).run(tmp_path / "x", progress=False, **changes)
    assert not (tmp_path / "x").exists()
