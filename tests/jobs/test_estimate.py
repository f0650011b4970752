"""`fastdiff sample --dry-run` says what the run then does, and writes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from damaged_runs import Cli
from tiny import Tiny

from fastdiff.jobs.folder import Folder
from fastdiff.jobs.formats import FORMATS

RUN = ("--model", "tiny:factory", "--unit", "16", "--steps", "3", "--threads", "1")


def said(cli: Cli, *arguments: str | Path) -> dict[str, Any]:
    assert cli("sample", *arguments, "--json", "--dry-run") == 0, cli.err
    found: dict[str, Any] = json.loads(cli.out)
    return found


def written(folder: Path) -> int:
    kinds = ("shards", "units", "trajectories", *(p.name for p in folder.glob("0*")))
    paths = [path for kind in kinds for path in (folder / kind).rglob("*")]
    return sum(path.stat().st_size for path in paths if path.is_file())


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_on_disk(cli: Cli, tmp_path: Path, format: str) -> None:
    """Within 2 % of what the run writes, in compressed formats at most 40 % more for 8×8 pixels of
    an untrained network, and within 2 % with a measured unit.
    """
    run = (*RUN, "--out", tmp_path / "run", "--ids", "5-40", "--format", format)
    before = said(cli, *run)
    assert cli("sample", *run, "--json", "--dry-run", "measure") == 0
    measured = json.loads(cli.out)
    assert not (tmp_path / "run").exists(), "nothing is written"
    assert cli("sample", *run) == 0
    expected = written(tmp_path / "run")
    assert measured["bytes"] == pytest.approx(expected, rel=0.02)
    most = 1.4 if before["compressed"] else 1.02
    assert 0.98 * expected <= before["bytes"] <= most * expected
    assert before["compressed"] == (format in ("png", "webdataset"))
    assert measured["unit_seconds"] > 0 and measured["measured_unit"] == 0
    assert measured["seconds"] == pytest.approx(3 * measured["unit_seconds"], abs=0.06)


def test_units_and_network_calls(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = Tiny.forward

    def counted(self: Tiny, x: Any, t: Any, y: Any) -> Any:
        rows.append(len(x))
        return forward(self, x, t, y)

    monkeypatch.setattr(Tiny, "forward", counted)
    monkeypatch.setitem(sys.modules, "tiny", tiny)
    run = (*RUN, "--out", tmp_path / "run", "--ids", "5-40")
    before = said(cli, *run)
    assert not rows, "the network is not called"
    assert cli("sample", *run) == 0
    assert before["network_calls"] == len(rows) == 9 and set(rows) == {16}
    counts = {k: before[k] for k in ("units", "samples", "done", "missing", "computed")}
    assert counts == {"units": 3, "samples": 36, "done": 0, "missing": 3, "computed": 48}
    assert before["weights_bytes"] == 4 * sum(p.numel() for p in Tiny(0).parameters())


def test_what_is_left(cli: Cli, tmp_path: Path) -> None:
    """Of a run that was begun, and of one that would be extended."""
    out = tmp_path / "run"
    run = (*RUN, "--out", out, "--ids", "0-39")
    assert cli("sample", *run) == 0
    assert said(cli, "--out", out)["missing"] == said(cli, "--out", out)["bytes"] == 0
    Folder(out).forget(1)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert said(cli, "--out", out)["missing"] == 1
    wider = said(cli, "--out", out, "--ids", "0-63")
    assert (wider["units"], wider["missing"], wider["samples"]) == (4, 3, 64)
    assert cli("sample", "--out", out, "--seed", "9", "--dry-run") == 3
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert cli("sample", "--out", tmp_path, *RUN, "--dry-run") == 2 and "new, empty" in cli.err


def test_trajectories_and_text(cli: Cli, tmp_path: Path) -> None:
    run = (*RUN, "--ids", "0-15", "--save", "trajectory", "--eta", "1")
    before = said(cli, *run)
    assert cli("sample", *run, "--out", tmp_path / "run") == 0
    assert before["bytes"] == pytest.approx(written(tmp_path / "run"), rel=0.02)
    assert cli("sample", *run, "--dry-run") == 0
    assert "1 of 1 to compute, of 16 ids each" in cli.out and "3 for each unit" in cli.out
    assert "time           unknown: `--dry-run measure` computes one unit" in cli.out
    assert cli("sample", *run, "--dry-run", "measure") == 0
    assert "for one worker" in cli.out and "MiB of memory for unit 0" in cli.out


def test_a_model_that_draws_its_samples_itself(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "vae"
    train = ("--model", "vae", "--steps", "1", "--batch-size", "2", "--widths", "8")
    assert cli("train", *train, "--out", out, "--data", "moons") == 0, cli.err
    assert cli("sample", "--model", out, "--num", "4", "--dry-run") == 0
    assert "drawn by the model's own `sample`" in cli.out
    assert said(cli, "--model", out, "--num", "4")["network_calls"] is None
