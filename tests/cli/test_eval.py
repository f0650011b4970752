"""`fastdiff eval`: its numbers are those of the systems, for any number of processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patience import PATIENCE

from fastdiff.cli import main
from fastdiff.data import load
from fastdiff.pretrained import load_system
from fastdiff.pretrained.files import read_json
from fastdiff.theory.dequantization import dequantize
from fastdiff.theory.evaluation import Request, evaluate, measure
from fastdiff.theory.evaluation.report import text
from fastdiff.theory.systems import Denoiser, make

pytestmark = pytest.mark.cpu_only
COMMON = ("--images", "30", "--unit", "8", "--threads", "1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("eval")
    few = (
        "--data",
        "moons",
        "--steps",
        "3",
        "--batch-size",
        "8",
        "--threads",
        "1",
        "--widths",
        "8",
    )
    for name in ("vae", "vdm"):
        assert main(["train", "--model", name, *few, "--out", str(folder / name)]) == 0
    return {name: str(folder / name) for name in ("vae", "vdm")}


def measured(path: Path, *arguments: str) -> list[dict[str, Any]]:
    assert main(["eval", *arguments, *COMMON, "--json", str(path)]) == 0
    return list(read_json(path)["results"])


def test_the_uniform_control_has_eight_bits(tmp_path: Path) -> None:
    (result,) = measured(tmp_path / "r.json", "uniform", "--data", "fashion-mnist")
    assert (
        result["bound"]["bits_per_dim"] == pytest.approx(8.0, abs=1e-12)
        and result["bound"]["stderr"] < 1e-9
    )


def test_a_bound_is_the_mean_of_the_systems(folders: dict[str, str], tmp_path: Path) -> None:
    """A VAE that was trained with 8 importance weights is measured with 8 by default."""
    system, ids = load_system(folders["vae"]).eval(), torch.arange(30)
    x0, _ = load("moons", "test").batch(ids)
    with torch.no_grad():
        parts = [system.bound(x0[i], None, seed=0, sample_ids=i) for i in ids.split(8)]  # type: ignore[operator]
    (result,) = measured(tmp_path / "r.json", folders["vae"])
    weighted = torch.cat([sum(p.values()) for p in parts]).double().numpy()  # type: ignore[arg-type]
    found = result["importance_weighted"]
    assert found["samples"] == 8 and found["nats"] == pytest.approx(weighted.mean(), rel=1e-6)
    assert found["stderr"] == pytest.approx(weighted.std(ddof=1) / math.sqrt(30), rel=1e-6)
    assert found["nats"] < result["bound"]["nats"], "weights tighten it"
    (one,) = measured(tmp_path / "one.json", folders["vae"], "--samples", "1")
    assert "importance_weighted" not in one and list(one["terms"]) == ["reconstruction", "kl"]


def test_terms_over_times_sum_to_the_bound(folders: dict[str, str], tmp_path: Path) -> None:
    (result,) = measured(
        tmp_path / "r.json", folders["vdm"], "--times", "6", "--plot", str(tmp_path / "terms.png")
    )
    over = result["over_time"]
    assert len(over["nats"]) == 6 and np.all(np.diff(over["log_snr"]) < 0)
    assert sum(over["nats"]) == pytest.approx(result["terms"]["denoising"]["nats"], rel=1e-9)
    assert (tmp_path / "terms.png").read_bytes()[:4] == b"\x89PNG"


def test_two_processes_give_the_same_numbers(folders: dict[str, str], tmp_path: Path) -> None:
    """Adaptive steps differ from rank to rank: no rank waits for another's evaluation."""
    arguments = [folders["vdm"], "--times", "4", "--probes", "1", "--tolerance", "1e-2"]
    alone = measured(tmp_path / "one.json", *arguments)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "fastdiff",
        "eval",
        *arguments,
        *COMMON,
        "--json",
        str(tmp_path / "two.json"),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "two.json").read_text())["results"] == alone


def test_one_weight_of_a_hierarchy(tmp_path: Path) -> None:
    """An HVAE does not store a number of samples: it is 1 without --samples."""
    out = str(tmp_path / "hvae")
    few = ("--data", "moons", "--steps", "1", "--batch-size", "4", "--widths", "8,8")
    assert main(["train", "--model", "hvae", *few, "--out", out]) == 0
    (result,) = measured(tmp_path / "r.json", out, "--option", "importance=true")
    assert result["importance_weighted"]["samples"] == 1
    (kept,) = measured(tmp_path / "r.json", out, "--samples", "4", "--option", "importance=false")
    assert "importance_weighted" not in kept


def test_a_density_of_images_gets_uniform_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow's likelihood dequantises as the bound does, at a step that no bound uses."""
    system = make("unet", load("fashion-mnist"), widths=[8], emb=8, timesteps=4)
    system = Denoiser(system.network, system.schedule, likelihood="gaussian", clip_range=None)
    request, steps = Request(images=2, times=1, probes=1, tolerance=0.1), []

    def spy(*arguments: Any, step: int = 0, **others: Any) -> Any:
        steps.append(step)
        return dequantize(*arguments, step=step, **others)

    monkeypatch.setattr(measure, "dequantize", spy)
    result = evaluate(system.eval(), load("fashion-mnist", "test"), request)
    assert result is not None and "noise uniform over a level" in result["nll"]["convention"]
    assert steps == [2**31]


def test_a_conditional_likelihood_is_in_no_common_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In JSON it has a list of its own, and a figure shows it only without models of x."""
    runs = {name: str(tmp_path / name) for name in ("superres", "unet")}
    few = ["--steps", "1", "--batch-size", "2", "--widths", "8", "--option", "emb=8"]
    for name, out in runs.items():
        assert main(["train", "--model", name, "--out", out, *few, "--timesteps", "9"]) == 0
    common = ["--images", "2", "--times", "4", "--threads", "1"]
    for models, results, conditional in (
        (["superres", "unet"], ["unet"], ["superres"]),
        (["unet"], ["unet"], None),
    ):
        file, plot = tmp_path / "x.json", tmp_path / "x.png"
        folders = [runs[name] for name in models]
        flags = ["--json", str(file), "--plot", str(plot)]
        assert main(["eval", *folders, *common, *flags]) == 0
        found = read_json(file)
        assert [r["system"] for r in found["results"]] == results
        assert ("conditional" in found) == (conditional is not None)
        if conditional:
            assert [r["system"] for r in found["conditional"]] == conditional
        plot.unlink()


def test_a_density_given_an_image_is_not_that_of_x() -> None:
    system = make("superres", load("fashion-mnist"), widths=[8], emb=8, timesteps=4)
    request = Request(images=2, times=1)
    result = evaluate(system.eval(), load("fashion-mnist", "test"), request)
    assert result is not None
    said = text(result, "superres")
    assert "conditional likelihood -ln p(x | low resolution) of 784 dimensions" in said
    assert "given low resolution: not comparable with the likelihood of a model of x" in said


def test_training_images_in_the_test_split_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, few = str(tmp_path / "run"), ("--steps", "1", "--batch-size", "2", "--timesteps", "4")
    sizes = ("--widths", "8", "--option", "emb=8")
    assert main(["train", *few, *sizes, "--out", out]) == 0
    short = ("--images", "2", "--times", "1")
    for arguments, warned in (
        (("--data", "fashion-mnist-full"), True),
        (("--data", "fashion-mnist-full", "--first", "9000"), False),
        ((), False),
    ):
        assert main(["eval", out, *short, *arguments]) == 0
        assert ("was trained on the images 0-8999" in capsys.readouterr().err) == warned


def test_eval_errors(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["uniform"], "expected --data for the uniform model, got none."),
        (
            [folders["vae"], "--probes", "1"],
            "expected a diffusion or score model for the probability flow's likelihood",
        ),
        ([folders["vae"], "--images", "0", "--samples", "0"], "expected samples >= 1, got 0."),
        ([folders["vdm"], "--samples", "4"], "expected an option of VDM's bound"),
        (
            [folders["vdm"], "--option", "times=4"],
            "expected times as a field of Request (--times), got it as an option.",
        ),
    ):
        assert main(["eval", *arguments]) == 2
        assert message in capsys.readouterr().err
