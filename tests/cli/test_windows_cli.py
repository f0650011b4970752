"""sde_rows on the command line, in run specs and in model folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.cli import main
from fastdiff.jobs.folder import Folder


def test_a_plan_with_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--solver", "flow_sde", "--schedule", "flow", "--steps", "6"]
    assert main([*command, "--option", "sde_rows=2,4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    drawn = [row[found["columns"].index("x.z")] for row in found["table"]]
    assert np.flatnonzero(drawn).tolist() == [2, 3]
    assert main([*command, "--option", "sde_rows=2,4"]) == 0
    assert "sde_rows [2, 4]" in capsys.readouterr().out
    assert main([*command, "--option", "sde_rows=2,9"]) == 2
    assert "expected sde_rows (i, j) with 0 <= i <= j <= 6" in capsys.readouterr().err


def test_a_dataset_with_a_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "sample",
        "--out",
        str(tmp_path / "set"),
        "--num",
        "2",
        "--unit",
        "2",
        "--steps",
        "3",
    ]
    command += ["--solver", "ddim", "--eta", "1"]
    assert main([*command, "--option", "sde_rows=0,1"]) == 0
    spec = Folder(tmp_path / "set").spec
    assert np.flatnonzero(spec.plan.column("x.z")).tolist() == [0]
    assert list(spec.sampling["sde_rows"]) == [0, 1]
    assert main([*command, "--option", "sde_rows=0,1"]) == 0  # the same run
    capsys.readouterr()
    assert main([*command, "--option", "sde_rows=0,2"]) == 3
    assert "sde_rows" in capsys.readouterr().err


def test_a_folder_with_a_window(tmp_path: Path) -> None:
    own = fastdiff.Sampler.from_pretrained(
        "fashion-mnist", solver="flow_sde", steps=4, sde_rows=(1, 3)
    )
    own.save_pretrained(tmp_path)
    again = fastdiff.Sampler.from_pretrained(tmp_path)
    assert again.plan.hash == own.plan.hash and again.plan.info["sde_rows"] == [1, 3]
    still = fastdiff.Sampler.from_pretrained(tmp_path, solver="dpm++2m")
    assert "sde_rows" not in still.settings
    y = torch.tensor([3])
    run = {"seed": 1, "cond": {"y": y}, "guidance_scale": 1.0}
    assert torch.equal(own.sample((1, 1, 28, 28), **run), again.sample((1, 1, 28, 28), **run))
