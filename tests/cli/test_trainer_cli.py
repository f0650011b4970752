"""`fastdiff train`: runs, errors, and runs that are killed: kill -9 at any time changes no bit."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from patience import PATIENCE
from processes import run, send, start, wait

from fastdiff.cli import main
from fastdiff.pretrained import load_system, read_config
from fastdiff.theory.registry import SYSTEMS
from fastdiff.training import CHECKPOINT, LOSSES
from fastdiff.training.folder import read

COMMON = (
    "--steps",
    "24",
    "--batch-size",
    "4",
    "--save-every",
    "2",
    "--warmup",
    "2",
    "--threads",
    "1",
)
IMAGES = ("--widths", "8", "--option", "emb=8")
POINTS = ("--data", "moons")
# every system of the registry on a configuration that trains in about a second
TINY: dict[str, tuple[str, ...]] = {
    "autoregressive": (*POINTS, "--widths", "8"),
    "classifier": (*IMAGES, "--timesteps", "50"),
    "hvae": (*POINTS, "--widths", "8,8", "--option", "kl_warmup=9"),
    "markovian": (*POINTS, "--widths", "8"),
    "score": (*POINTS, "--option", "width=8", "--option", "depth=1"),
    "superres": (*IMAGES, "--timesteps", "50"),
    "unet": (*POINTS, "--option", "width=8", "--option", "depth=1", "--objective", "epsilon"),
    "vae": (*POINTS, "--widths", "8"),
    "vdm": (*POINTS, "--widths", "8"),
}


def test_every_system_is_trained_here() -> None:
    assert set(TINY) == set(SYSTEMS)


@pytest.mark.parametrize("name", sorted(TINY))
def test_killed_and_resumed_is_undisturbed(name: str, tmp_path: Path) -> None:
    """SIGKILL at a random time after a few checkpoints, three times, next to an undisturbed run."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    arguments = ("train", "--model", name, *TINY[name], *COMMON)
    status, said = run(tmp_path / "log", *arguments, "--out", str(straight))
    assert status == 0, said
    chance, kills = random.Random(name), 0
    process = start(tmp_path / "log", *arguments, "--out", str(broken))
    for _ in range(3):
        seen = _written(broken)
        goal = seen + chance.randint(1, 2)
        wait(lambda goal=goal: _written(broken) >= goal, process)  # type: ignore[misc]
        time.sleep(chance.random() * 0.02)
        alive = process.is_alive() and send(process, signal.SIGKILL)
        process.join()
        kills += alive and not (broken / "config.json").exists()
        process = start(
            tmp_path / "log",
            "train",
            "--out",
            str(broken),
            "--resume",
            "--threads",
            "1",
            "--save-every",
            "2",
        )
    process.join(PATIENCE)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert kills >= 1, "no kill hit an unfinished run: it proves nothing"
    for file in ("model.safetensors", "config.json", LOSSES):
        assert (straight / file).read_bytes() == (broken / file).read_bytes(), file
    (ours, notes), (theirs, others) = read(straight), read(broken)
    assert notes == others and [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert not list(broken.glob(".*.tmp"))


def _written(folder: Path) -> int:
    """The number of steps of the folder's checkpoint, in units of two."""
    try:
        return int(read(folder)[1]["step"]) // 2
    except (OSError, ValueError):
        return 0


def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (
        "train",
        "--out",
        str(out),
        *POINTS,
        "--steps",
        "100000",
        "--option",
        "width=8",
        "--option",
        "depth=1",
    )
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        log = tmp_path / f"log-{status}"
        process = start(log, *arguments, *(("--resume",) if out.exists() else ()))
        assert wait(lambda log=log: "steps" in log.read_text() if log.exists() else False, process)  # type: ignore[misc]
        time.sleep(0.3)
        assert send(process, number), log.read_text()
        process.join(PATIENCE)
        assert process.exitcode == status, log.read_text()
        assert f"continue with: fastdiff train --out {out} --resume" in log.read_text()
    assert int(read(out)[1]["step"]) > 0 and not (out / "config.json").exists()


def test_resume_needs_no_more_than_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path)
    begin = [
        "train",
        "--out",
        out,
        *POINTS,
        "--steps",
        "40",
        "--option",
        "width=8",
        "--lr",
        "0.002",
        "--batch-size",
        "8",
    ]
    assert main([*begin, "--minutes", "1e-9"]) == 0
    assert "stopped at step 1 of 40" in capsys.readouterr().out
    assert read_config(out)["training"]["stopped_at"] == 1
    assert main(begin) == 2
    assert f"{out} holds a training run already; pass --resume" in capsys.readouterr().err
    assert main(["train", "--out", out, "--resume", "--lr", "0.1"]) == 2
    assert f"expected the lr 0.002 of the run in {out}, got 0.1." in capsys.readouterr().err
    assert main(["train", "--out", out, "--resume", "--option", "width=16"]) == 2
    assert "expected the options {'width': 8} of the run" in capsys.readouterr().err
    assert main(["train", "--out", out, "--resume"]) == 0
    assert "after 40 steps; sample it with: fastdiff sample --model" in capsys.readouterr().out
    config = read_config(out)
    assert config["training"]["lr"] == 0.002 and "stopped_at" not in config["training"]
    assert config["training"]["arguments"]["data"] == "moons" and config["data"]["shape"] == [2]
    assert load_system(out).config["network"]["config"]["width"] == 8  # type: ignore[index, union-attr, call-overload]


def test_flags_are_the_options_of_those_that_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--model", "vae", "--data", "moons", "--options"]) == 0
    listed = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert (
        listed["latent"] == "2"
        and listed["likelihood"] == "gaussian"
        and listed["objective"] == "importance"
    )
    out = tmp_path / "run"
    few = ["--steps", "1", "--batch-size", "2", *POINTS, "--out", str(out)]
    assert (
        main(["train", *few, "--objective", "x0", "--timesteps", "30", "--option", "width=8"]) == 0
    )
    config = read_config(out)
    assert config["system"]["config"]["prediction_type"] == "x0"
    assert config["prediction_type"] == "edm", "the network's output, from which x0 is computed"
    assert config["schedule"]["num_train_timesteps"] == 30
    assert config["training"]["lr"] == 0.002, "a run on points has their defaults"
    assert "prediction_type" in config["training"]["arguments"]["options"]


def test_a_picture_of_points(tmp_path: Path) -> None:
    """After a short training the figure shows density and samples, and these are near the data."""
    out, picture = tmp_path / "run", tmp_path / "moons.png"
    assert (
        main(
            [
                "train",
                "--model",
                "unet",
                "--out",
                str(out),
                *POINTS,
                "--steps",
                "3",
                "--batch-size",
                "64",
                "--option",
                "width=16",
                "--timesteps",
                "20",
                "--plot",
                str(picture),
            ]
        )
        == 0
    )
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 20_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--model", "vae", "--timesteps", "3"],
            "expected no --timesteps for vae, which has no such option.",
        ),
        (["--option", "latent=3"], "fastdiff.theory.systems: expected an option of unet ("),
        (["--option", "latent"], "expected --option NAME=VALUE, got 'latent'."),
        (["--steps", "0"], "fastdiff.Trainer: expected steps >= 1, got 0."),
        (["--minutes", "0"], "expected --minutes > 0, got 0.0."),
        (["--save-every", "0"], "expected --save-every >= 1, got 0."),
        (["--threads", "0"], "expected --threads >= 1, got 0."),
        (
            ["--widths", "7,9"],
            "fastdiff.models.UNet: expected widths that are multiples of groups=8",
        ),
        (
            ["--model", "superres", "--data", "moons"],
            "fastdiff.theory.systems: expected images for superres",
        ),
    ],
)
def test_train_errors(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "x"), *arguments]) in (1, 2)
    assert capsys.readouterr().err.startswith(f"fastdiff train: {message}")
    assert not (tmp_path / "x").exists()


def test_the_levels_of_a_hierarchy(tmp_path: Path) -> None:
    few = ("--steps", "1", "--batch-size", "2", *POINTS)
    for model, levels, stored in (
        ("markovian", "3", [3]),
        ("markovian", "3,2", [3, 2]),
        ("hvae", "[[3, 1]]", [[3, 1]]),
    ):
        out = str(tmp_path / f"{model}{levels}")
        flags = ("--levels", levels, "--widths", "8")
        assert main(["train", "--model", model, *few, *flags, "--out", out]) == 0
        assert load_system(out).config["latents"] == stored  # type: ignore[index, union-attr]


@pytest.mark.parametrize("model", ["classifier", "superres"])
def test_no_picture_of_a_system_that_draws_no_samples(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes before the training."""
    few = (*IMAGES, "--steps", "1", "--batch-size", "2", "--timesteps", "5")
    arguments = ["train", "--model", model, *few, "--out", str(tmp_path / "run")]
    assert main([*arguments, "--plot", str(tmp_path / "x.png")]) == 2
    assert "expected a system that draws samples of x alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, error",
    [
        ("x.pdf", "expected --plot FILE.png, got"),
        ("missing/x.png", "expected a folder that exists for --plot, got"),
        ("file/x.png", "expected a folder for --plot, got the file"),
        ("folder.png", "expected a file for --plot, got the folder"),
        ("locked/x.png", "expected a folder to write to for --plot, got"),
        ("x.png", "expected matplotlib for a plot, got none installed."),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval", "plan"])
def test_where_a_plot_goes_is_checked_before_the_work(
    command: str,
    name: str,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    if name == "x.png":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    if name == "locked/x.png" and os.access(tmp_path / "locked", os.W_OK):

        def refuse(**_: object) -> None:  # root may write to every folder
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("fastdiff.cli.figures.tempfile.TemporaryFile", refuse)
    out = str(tmp_path / "run")
    arguments = {
        "train": ["--out", out, *POINTS, "--steps", "1", "--timesteps", "9"],
        "eval": ["uniform", "--data", "fashion-mnist", "--images", "2"],
        "plan": ["--steps", "2"],
    }[command]
    status = 1 if name in ("locked/x.png", "x.png") else 2  # what no other argument would mend
    assert main([command, *arguments, "--plot", str(tmp_path / name)]) == status
    said = capsys.readouterr()
    assert error in said.err and said.out == ""
    assert not (tmp_path / "run").exists()


UNITS = {
    "autoregressive": "nats",
    "classifier": "nats",
    "hvae": "nats",
    "markovian": "nats",
    "score": "nats/dim",
    "superres": "MSE",
    "unet": "MSE",
    "vae": "nats",
    "vdm": "bits/dim",
}


@pytest.mark.parametrize("model", SYSTEMS)
def test_the_last_line_has_the_unit_of_the_loss(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--model", model, "--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "2"]
    assert main(["train", *few, *TINY[model]]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(rf"loss -?[\d.]+ {UNITS[model]} after 1 steps; ", last), last


def test_out_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) in (1, 2)
    assert "expected --out FOLDER, got none." in capsys.readouterr().err


def test_the_metadata_of_a_checkpoint_is_json(tmp_path: Path) -> None:
    assert (
        main(
            [
                "train",
                "--out",
                str(tmp_path),
                *POINTS,
                "--steps",
                "1",
                "--batch-size",
                "2",
                "--option",
                "width=8",
            ]
        )
        == 0
    )
    from safetensors import safe_open

    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        kept = {k: json.loads(v) for k, v in file.metadata().items()}
    assert kept["identity"]["system"]["name"] == "unet" and kept["losses"][0][0] == 1
