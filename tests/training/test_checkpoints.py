"""Checkpoints that are kept, the best one, damaged ones, a full disk, and NaN."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE
from small_trainers import Learning, denoiser, learning
from torch import Tensor

from fastdiff import Trainer
from fastdiff.cli import main
from fastdiff.data import load_toy
from fastdiff.pretrained.files import read_tensors
from fastdiff.training import BEST, CHECKPOINT
from fastdiff.training.folder import read, steps_of

RUN = (
    *("--data", "moons", "--steps", "12", "--batch-size", "8", "--save-every", "2"),
    *("--option", "width=8", "--option", "depth=1", "--log-every", "1"),
)


def stored_step(path: Path) -> int:
    return int(json.loads(read_tensors(path)[1]["step"]))


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    learning(steps=10).run(tmp_path, progress=False, save_every=2, keep=3)
    assert stored_step(tmp_path / CHECKPOINT) == 10
    earlier = steps_of(tmp_path / "checkpoints")
    assert list(earlier) == [6, 8]
    assert [stored_step(p) for p in earlier.values()] == [6, 8]
    index = json.loads((tmp_path / "checkpoints.json").read_text())
    assert index["newest"] == {"file": CHECKPOINT, "step": 10}
    assert [e["step"] for e in index["earlier"]] == [6, 8]


def test_one_checkpoint_if_one_is_kept(tmp_path: Path) -> None:
    learning(steps=6).run(tmp_path, progress=False, save_every=2, keep=1)
    assert not (tmp_path / "checkpoints").exists()


def test_the_best_one_by_the_smoothed_loss(tmp_path: Path) -> None:
    trainer = learning(steps=8, lr=0.1)
    kept, losses = trainer.train_step, iter([4.0, 3.0, 2.0, 1.0, 9.0, 9.0, 9.0, 9.0])

    def step(*arguments: Any) -> tuple[float, float]:
        return next(losses), kept(*arguments)[1]

    trainer.train_step = step  # type: ignore[method-assign]
    trainer.run(tmp_path, progress=False, save_every=2, log_every=1, keep=1)
    best = json.loads((tmp_path / "checkpoints.json").read_text())["best"]
    assert best == {"file": BEST, "step": 4, "value": 2.5, "by": "the smoothed training loss"}
    assert stored_step(tmp_path / BEST) == 4 and stored_step(tmp_path / CHECKPOINT) == 8


def test_the_best_one_by_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(
        "fastdiff.training.watch.evaluate", lambda *a, **k: (next(values), "bits/dim")
    )
    trainer = learning(steps=8)
    trainer.held_out = trainer.data
    trainer.run(tmp_path, progress=False, save_every=100, eval_every=2, eval_images=7)
    best = json.loads((tmp_path / "checkpoints.json").read_text())["best"]
    assert (best["step"], best["value"]) == (4, 1.0)
    assert best["by"] == "bits/dim of 7 held-out examples"
    assert stored_step(tmp_path / BEST) == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "removed", "overwritten"])
def test_a_damaged_checkpoint_names_the_newest_intact_one(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command in the sentence continues the run, to the bits of an undisturbed one."""
    straight, out = tmp_path / "straight", tmp_path / "run"
    for folder in (straight, out):
        assert main(["train", "--out", str(folder), *RUN]) == 0
    path = out / CHECKPOINT
    content = path.read_bytes()
    earlier = steps_of(out / "checkpoints")[10]
    if damage == "removed":
        path.unlink()
    else:
        sizes = {"truncated": content[: len(content) // 2], "empty": b""}
        path.write_bytes(sizes.get(damage, b"\0" * len(content)))
    # the newest of the earlier ones is damaged too
    earlier.write_bytes(content[:100])
    intact = steps_of(out / "checkpoints")[8]
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("fastdiff train: ")
    assert f"The newest intact checkpoint is {intact}, of step 8" in said
    assert f"cp {intact} {path}" in said
    path.write_bytes(intact.read_bytes())
    assert main(["train", "--out", str(out), "--resume"]) == 0
    ours, theirs = (read(p)[0] for p in (straight, out))
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """The limit of a file's size is between that of the first checkpoint and what follows."""
    script = textwrap.dedent(
        """
        import resource, sys, torch
        torch.set_num_threads(int(sys.argv[2]))
        from small_trainers import denoiser
        from fastdiff.training import CHECKPOINT
        from pathlib import Path

        out = Path(sys.argv[1])
        t = denoiser(steps=6, batch_size=4)
        t.run(out, until=2, progress=False)
        limit = (out / CHECKPOINT).stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            t.run(out, until=4, progress=False)
        except RuntimeError as error:
            print(error)
        """
    )
    if not hasattr(resource, "RLIMIT_FSIZE"):
        pytest.skip("an operating system without limits")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join([str(Path(__file__).parent), *(p for p in sys.path if p)])},
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert said.startswith("fastdiff.Trainer: expected to write the checkpoint of step 4 in"), said
    assert "The checkpoint of step 2 is kept" in said and "continue with --resume" in said
    assert "\n" not in said
    assert read(tmp_path)[1]["step"] == 2 and not list(tmp_path.glob(".*.tmp"))
    again = denoiser(steps=6, batch_size=4)
    again.resume(tmp_path)
    again.run(tmp_path, progress=False)
    straight = denoiser(steps=6, batch_size=4)
    straight.run(tmp_path / "straight", progress=False)
    ours, theirs = (read(p)[0] for p in (tmp_path, tmp_path / "straight"))
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


@pytest.mark.parametrize("what", ["the log", "samples", "a snapshot of the averages"])
def test_every_file_of_a_full_disk_is_named(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = denoiser(steps=2, batch_size=4, ema_rel=(0.1,))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    names = {
        "the log": "fastdiff.training.loggers.JSONLines.log",
        "samples": "fastdiff.training.record.write_atomically",
        "a snapshot of the averages": "fastdiff.training.averages.write_tensors",
    }
    monkeypatch.setattr(names[what], full)
    monkeypatch.setattr("fastdiff.training.watch.draw", lambda *a, **k: torch.zeros(1, 1, 28, 28))
    with pytest.raises(RuntimeError, match=rf"expected to write {what} in .* got 'No space left"):
        trainer.run(tmp_path, progress=False, sample_every=1, log_every=1)


class Spoiled:
    """Points, one of which is NaN."""

    def __init__(self, at: int):
        self.toy, self.at = load_toy("moons", n=40), at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.toy, name)

    def batch(self, index: Tensor, **others: Any) -> Any:
        x0, labels = self.toy.batch(index, **others)
        return torch.where((index == self.at)[:, None], torch.nan, x0), labels


def test_nan_in_the_data_stops_with_the_step_named(tmp_path: Path) -> None:
    clean = Trainer(Learning(), load_toy("moons", n=40), steps=10, batch_size=4)
    at = int(clean.examples(6)[2])
    spoiled = Trainer(Learning(), Spoiled(at), steps=10, batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(
        RuntimeError,
        match=rf"got nan and nan at step 6\. .* The checkpoint of step 5 in {tmp_path} is kept\.$",
    ):
        spoiled.run(tmp_path, progress=False, save_every=5)
    tensors, metadata = read(tmp_path)
    assert metadata["step"] == 5
    assert all(torch.isfinite(v).all() for v in tensors.values())
    # with the data repaired the run continues
    clean.resume(tmp_path)
    clean.run(tmp_path, progress=False)
    assert clean.step == 10


def test_weights_that_became_nan_are_not_saved(tmp_path: Path) -> None:
    trainer = learning(steps=10)
    trainer.run(tmp_path, progress=False, until=4)
    with torch.no_grad():
        trainer.system.unused.fill_(torch.nan)  # the loss does not see it
    with pytest.raises(
        RuntimeError, match=r"expected finite weights after step 6, got NaN .* 'system\.unused'"
    ):
        trainer.run(tmp_path, progress=False, until=6)
    assert read(tmp_path)[1]["step"] == 4
