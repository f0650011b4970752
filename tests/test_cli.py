"""The command line: train, sample and their one-sentence errors, run as users run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import Sampler, images
from fastdiff.cli import main
from fastdiff.pretrained import read_config, shipped
from fastdiff.solvers import SOLVERS


def test_the_shipped_model_says_what_it_is() -> None:
    assert shipped() == ["fashion-mnist"]
    config = read_config("fashion-mnist")
    assert config["data"]["null_label"] == 10 and len(config["data"]["classes"]) == 10
    assert {"steps", "seed", "final_loss", "command"} <= config["training"].keys()
    folder = Path(sys.modules["fastdiff.pretrained"].__file__ or "").parent / "fashion-mnist"
    assert (folder / "model.safetensors").stat().st_size < 8_000_000 and (folder / "loss.csv").exists()


def test_sample_writes_images_grid_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["sample", "--out", str(out), "--num", "12", "--steps", "2", "--batch-size", "5", "--seed", "7"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert all(str(out / name) in shown.out for name in ("samples.npz", "grid.png", "sample.json"))
    assert "12/12" in shown.err and "img/s" in shown.err
    report = json.loads((out / "sample.json").read_text())
    assert report["spec"]["seed"] == 7 and len(report["spec"]["plan"]) == 64
    assert report["backend"] in ("cpu", "torch") and report["images_per_second"] > 0
    with np.load(out / "samples.npz") as data:
        assert data["images"].shape == (12, 28, 28, 1) and data["images"].dtype == np.uint8
        assert data["labels"].tolist() == [*range(10), 0, 1] and data["ids"].tolist() == list(range(12))
        drawn = data["images"]
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 2 * 60 and grid.height == 10 * 60, "ten classes, at most two images of each"
    # sample 11 alone, by its id, from Python: the same picture up to the network's rounding at another batch size
    sampler = Sampler.from_pretrained("fashion-mnist", steps=2)
    y = torch.tensor([1])
    x = sampler.sample((1, 1, 28, 28), seed=7, sample_ids=[11], cond={"y": y}, uncond={"y": torch.full_like(y, 10)})
    assert np.abs(images.to_uint8(x)[0, 0].numpy().astype(int) - drawn[11, :, :, 0]).max() <= 1
    # again: the same specification is made anew, another one is refused and nothing is touched
    assert main(arguments) == 0
    before = (out / "samples.npz").read_bytes()
    assert main([*arguments[:-1], "8"]) == 1
    assert "holds the result of another specification (seed: 7 there, 8 now)" in capsys.readouterr().err
    assert (out / "samples.npz").read_bytes() == before
    assert main([*arguments[:-1], "8", "--overwrite", "--classes", "Bag,0"]) == 0
    with np.load(out / "samples.npz") as data:
        assert set(data["labels"].tolist()) == {0, 8}
    assert sorted(p.name for p in out.iterdir()) == ["grid.png", "sample.json", "samples.npz"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "2000"], "fastdiff sample: fastdiff.Sampler: expected steps in [1, 1000], got 2000."),
        (["--classes", "Hat"], "fastdiff sample: expected --classes among 0-9 or T-shirt, Trouser,"),
        (
            ["--weights", "/nowhere"],
            "fastdiff sample: fastdiff.checkpoint: expected the file /nowhere/config.json, got none.",
        ),
        (["--num", "0"], "fastdiff sample: expected --num and --batch-size >= 1, got 0 and 64."),
        (["--solver", "magic"], f"fastdiff sample: fastdiff.Sampler: expected solver in {sorted(SOLVERS)}, got 'magic'."),
    ],
)
def test_sample_errors(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--out", str(tmp_path / "x"), *arguments]) == 1
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith(message)
    assert not (tmp_path / "x").exists()


def test_train_then_sample(tmp_path: Path) -> None:
    """Out of the box, in a process of its own: train, be refused, resume nothing, sample."""

    def fastdiff(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "fastdiff", *arguments], capture_output=True, text=True)

    run = str(tmp_path / "run")
    train = ("train", "--out", run, "--steps", "3", "--batch-size", "8", "--widths", "8,16", "--objective", "epsilon")
    done = fastdiff(*train)
    assert done.returncode == 0 and "img/s" in done.stderr and "fastdiff sample --weights" in done.stdout, done.stderr
    again = fastdiff(*train)
    assert again.returncode == 1
    assert again.stderr.strip() == (
        f"fastdiff train: {run} holds a training run already; pass --resume to continue it, or another --out."
    )
    nothing = fastdiff("train", "--out", str(tmp_path / "new"), "--resume")
    assert nothing.returncode == 1 and "expected a run to resume in" in nothing.stderr
    drawn = fastdiff("sample", "--weights", run, "--out", str(tmp_path / "s"), "--num", "4", "--steps", "2")
    assert drawn.returncode == 0, drawn.stderr


def test_solvers_lists_every_solver(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solvers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SOLVERS)
    assert main(["solvers", "--json"]) == 0
    rows = {row["solver"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["heun"]["calls"] == 2 and rows["ddpm"]["noise"] and not rows["unipc"]["noise"]


def test_plan_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    from fastdiff import Schedule
    from fastdiff.solvers import make_plan

    arguments = ["plan", "--solver", "dpm++2m", "--steps", "4", "--spacing", "karras", "--option", "solver_type=heun"]
    assert main(arguments) == 0
    expected = make_plan(
        Schedule.linear(1000), solver="dpm++2m", steps=4, timestep_spacing="karras", solver_type="heun"
    )
    assert capsys.readouterr().out == f"{expected}\n"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == expected.table.tolist()
    assert main(["plan", "--solver", "dpm++2m", "--option", "heun"]) == 1
    assert "fastdiff plan: expected --option NAME=VALUE, got 'heun'." in capsys.readouterr().err
    assert main(["plan", "--solver", "ddim", "--steps", "2000"]) == 1
