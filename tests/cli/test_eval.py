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

from fastdiff.cli import main
from fastdiff.data import load
from fastdiff.pretrained import load_system
from fastdiff.pretrained.files import read_json

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
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "two.json").read_text())["results"] == alone


def test_eval_errors(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["uniform"], "expected --data for the uniform model, got none."),
        (
            [folders["vae"], "--probes", "1"],
            "expected a diffusion or score model for the probability flow's likelihood",
        ),
        ([folders["vae"], "--images", "0", "--samples", "0"], "expected samples >= 1, got 0."),
        ([folders["vdm"], "--samples", "4"], "expected an option of VDM's bound"),
    ):
        assert main(["eval", *arguments]) == 1
        assert message in capsys.readouterr().err
