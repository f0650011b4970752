"""The command line: train, sample and their one-sentence errors, run as users run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    assert {"runs", "batch_size", "final_loss"} <= config["training"].keys()
    folder = Path(sys.modules["fastdiff.pretrained"].__file__ or "").parent / "fashion-mnist"
    assert (folder / "model.safetensors").stat().st_size < 8_000_000 and (
        folder / "loss.csv"
    ).exists()


def test_sample_makes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = [
        "sample",
        "--out",
        str(out),
        "--num",
        "12",
        "--steps",
        "2",
        "--unit",
        "5",
        "--seed",
        "7",
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert (
        "12 images in" in shown.out
        and f"3 of 3 units are in {out}" in shown.out
        and str(out / "grid.png") in shown.out
    )
    assert "12/12" in shown.err and "img/s" in shown.err and "queue" in shown.err
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 2 * 60 and grid.height == 10 * 60, (
            "ten classes, at most two images of each"
        )
    drawn = np.concatenate([np.load(out / f"shards/00000/{u:09d}.npy") for u in range(3)])
    assert drawn.shape == (12, 28, 28, 1) and drawn.dtype == np.uint8
    # sample 11 alone, by its id, from Python: the same image up to the network's rounding at
    # another batch size
    sampler = Sampler.from_pretrained("fashion-mnist", steps=2)
    y = torch.tensor([1])
    x = sampler.sample(
        (1, 1, 28, 28), seed=7, sample_ids=[11], cond={"y": y}, uncond={"y": torch.full_like(y, 10)}
    )
    assert np.abs(images.to_uint8(x)[0, 0].numpy().astype(int) - drawn[11, :, :, 0]).max() <= 1
    # from the dataset: the same bits, because its whole unit is computed again
    alone = tmp_path / "alone"
    assert main(["sample", "--ids", "11", "--spec", str(out), "--out", str(alone)]) == 0
    assert "as in the dataset" in capsys.readouterr().out
    with Image.open(alone / "000011.png") as picture:
        assert np.array_equal(np.asarray(picture), drawn[11, :, :, 0])
    # again: nothing to do. Other settings are refused, and no file is touched
    before = {p: p.read_bytes() for p in out.rglob("*.npy")}
    assert main(arguments) == 0 and "0 images in" in capsys.readouterr().out
    own = str(read_config("fashion-mnist")["sampler"]["guidance_scale"])
    assert main([*arguments[:-1], "8", "--guidance", own, "--classes", "Bag,0"]) == 3
    assert capsys.readouterr().err.strip().splitlines() == [
        f"fastdiff sample: fastdiff.jobs: expected the run of {out}, got another in 2 settings.",
        f"  conditions: {{'classes': {list(range(10))}}} there, {{'classes': [8, 0]}} here",
        "  seed: 7 there, 8 here",
        f"Name another --out, or continue it as it was started: `fastdiff resume {out}`.",
    ], "the model's own guidance is no difference"
    assert {p: p.read_bytes() for p in out.rglob("*.npy")} == before
    assert main(["verify", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fine"] and found["done"] == 3 and len(found["digest"]) == 64
    assert main(["info", str(out)]) == 0
    report = capsys.readouterr().out
    assert "3 of 3 units done (12 of 12 samples" in report and report.rstrip().endswith("complete")


def test_sample_with_a_type_of_guidance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a part of the run: other flags are refused, and the same ones or none are not."""
    out = tmp_path / "run"
    plain = ["sample", "--out", str(out), "--num", "2", "--unit", "2", "--steps", "3"]
    flags = ["--guidance-type", "apg", "--option", "apg_norm=2.5", "--option", "apg_momentum=-0.5"]
    assert main([*plain, *flags]) == 0
    drawn = np.load(out / "shards/00000/000000000.npy")
    settings: dict[str, Any] = {"guidance_type": "apg", "apg_norm": 2.5, "apg_momentum": -0.5}
    sampler = Sampler.from_pretrained("fashion-mnist", steps=3, **settings)
    y = torch.tensor([0, 1])
    x = sampler.sample((2, 1, 28, 28), seed=0, cond={"y": y}, uncond={"y": torch.full_like(y, 10)})
    found = images.to_uint8(x)[:, 0].numpy().astype(int)
    assert np.abs(found - drawn[..., 0]).max() <= 1
    capsys.readouterr()
    for again in (plain, [*plain, *flags]):
        assert main(again) == 0 and "0 images in" in capsys.readouterr().out
    other = tmp_path / "other"
    assert main([*plain[:2], str(other), *plain[3:]]) == 0
    assert main([*plain[:2], str(other), *plain[3:], "--guidance-type", "cfg"]) == 0
    capsys.readouterr()
    assert main([*plain[:2], str(other), *plain[3:], "--guidance-type", "cfg++"]) == 3
    assert "  guidance_type: 'cfg' there, 'cfg++' here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--steps", "2000"],
            "fastdiff sample: fastdiff.Sampler: expected steps in [1, 1000], got 2000.",
        ),
        (
            ["--classes", "Hat"],
            "fastdiff sample: fastdiff.jobs: expected a class among 0-9 or T-shirt, Trouser,",
        ),
        (
            ["--model", "/nowhere"],
            "fastdiff sample: fastdiff.jobs: expected a folder, a shipped model (fashion-mnist)",
        ),
        (["--num", "0"], "fastdiff sample: expected --num >= 1, got 0."),
        (
            ["--ids", "5-4"],
            "fastdiff sample: expected --ids A-B with A <= B, both included, got '5-4'.",
        ),
        (["--ids", "5", "--num", "4"], "fastdiff sample: expected --ids or --num, got both."),
        (
            ["--shard", "2/2"],
            "fastdiff sample: fastdiff.jobs: expected --shard i/n with 0 <= i < n, got '2/2'.",
        ),
        (["--option", "eta"], "fastdiff sample: expected --option NAME=VALUE, got 'eta'."),
        (["--option", "etaa=1"], "fastdiff sample: "),
        (
            ["--workers", "2"],
            "fastdiff sample: expected --workers with --engine ray, got it without.",
        ),
        (
            ["--solver", "magic"],
            (
                f"fastdiff sample: fastdiff.Sampler: expected solver in {sorted(SOLVERS)}, got"
                " 'magic'."
            ),
        ),
    ],
)
def test_sample_errors(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--out", str(tmp_path / "x"), *arguments]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith(message)
    assert not (tmp_path / "x").exists()


def test_a_module_that_is_missing_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers elsewhere, such as Ray's actors, may lack a module that this process has."""

    def lacking(*_: object, **__: object) -> None:
        raise ImportError("fastdiff.jobs: expected a module 'mine', got none.")

    monkeypatch.setattr("fastdiff.cli.sample.runner.run", lacking)
    assert main(["sample", "--out", str(tmp_path / "run"), "--num", "1", "--steps", "1"]) == 1
    said = capsys.readouterr().err
    assert said == "fastdiff sample: fastdiff.jobs: expected a module 'mine', got none.\n"


def test_a_conditions_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that begins a run parses the lines; later ones compare the file's hash."""
    lines = tmp_path / "classes.txt"
    lines.write_text("1\n2\n")
    checks: list[int] = []
    monkeypatch.setattr(
        "fastdiff.jobs.conditions.FileConditions._check", lambda self: checks.append(1)
    )
    command = ["sample", "--out", str(tmp_path / "run"), "--conditions", str(lines)]
    command += ["--num", "2", "--steps", "1", "--unit", "2"]
    assert main(command) == 0 and main(command) == 0 and len(checks) == 1
    lines.write_text("1\n3\n")
    assert main(command) == 3


def test_commands_need_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("resume", "info", "verify"):
        assert main([command, str(tmp_path)]) == 2
        assert (
            f"expected a dataset in {tmp_path}, got no spec.json there." in capsys.readouterr().err
        )
    assert main(["sample", "--num", "3"]) == 2
    assert "expected --out, the dataset's folder" in capsys.readouterr().err


def test_train_then_sample(tmp_path: Path) -> None:
    """In separate processes: train, train again (refused), resume nothing (refused), sample."""

    def fastdiff(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fastdiff", *arguments], capture_output=True, text=True
        )

    run = str(tmp_path / "run")
    train = (
        "train",
        "--out",
        run,
        "--steps",
        "3",
        "--batch-size",
        "8",
        "--widths",
        "8,16",
        "--objective",
        "epsilon",
    )
    done = fastdiff(*train)
    assert (
        done.returncode == 0 and "img/s" in done.stderr and "fastdiff sample --model" in done.stdout
    ), done.stderr
    again = fastdiff(*train)
    assert again.returncode == 2
    assert (
        again.stderr.strip()
        == f"fastdiff train: {run} holds a training run already; pass --resume to continue it, or"
        " another --out."
    )
    nothing = fastdiff("train", "--out", str(tmp_path / "new"), "--resume")
    assert nothing.returncode == 2 and "expected a run to resume in" in nothing.stderr
    drawn = fastdiff(
        "sample", "--model", run, "--out", str(tmp_path / "s"), "--num", "4", "--steps", "2"
    )
    assert drawn.returncode == 0, drawn.stderr


def test_solvers_lists_every_solver(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solvers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[1 : lines.index("")]  # then the advice
    assert [line.split()[0] for line in table] == list(SOLVERS)
    assert main(["solvers", "--json"]) == 0
    rows = {row["solver"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["heun"]["calls"] == 2 and rows["ddpm"]["noise"] and not rows["unipc"]["noise"]


def test_plan_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    from fastdiff import Schedule
    from fastdiff.solvers import make_plan

    arguments = [
        "plan",
        "--solver",
        "dpm++2m",
        "--steps",
        "4",
        "--spacing",
        "karras",
        "--option",
        "solver_type=heun",
    ]
    assert main(arguments) == 0
    expected = make_plan(
        Schedule.linear(1000),
        solver="dpm++2m",
        steps=4,
        timestep_spacing="karras",
        solver_type="heun",
    )
    assert capsys.readouterr().out == f"{expected}\n"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == expected.table.tolist()
    assert main(["plan", "--solver", "dpm++2m", "--option", "heun"]) == 2
    assert "fastdiff plan: expected --option NAME=VALUE, got 'heun'." in capsys.readouterr().err
    assert main(["plan", "--solver", "ddim", "--steps", "2000"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--model", "fashion-mnist", "--out", "{out}", "--device", "gpu"],
        ["bench", "--device", "gpu"],
        ["train", "--data", "moons", "--out", "{out}", "--steps", "1", "--device", "gpu"],
    ],
    ids=lambda words: words[0],
)
def test_a_device_that_torch_does_not_know(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([word.format(out=out) for word in arguments]) != 0
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "expected a device such as cpu or cuda:0, got 'gpu'." in error[0]
    assert not out.exists()
