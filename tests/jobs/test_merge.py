"""Datasets that are merged equal the one that is drawn at once, to the byte."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from damaged_runs import Cli, flip
from test_extend import RUN, files, labels

from fastdiff import jobs
from fastdiff.cli import main
from fastdiff.jobs.folder import Folder
from fastdiff.jobs.formats import FORMATS
from fastdiff.jobs.formats.block import pixels_sha256
from fastdiff.jobs.records import read_record, with_checksum
from fastdiff.jobs.verify import verify


def dataset(cli: Cli, path: Path, ids: str, *more: str | Path) -> Path:
    assert cli("sample", "--out", path, "--ids", ids, *RUN, *more) == 0, cli.err
    return path


@pytest.fixture
def three(cli: Cli, tmp_path: Path) -> list[Path]:
    """Units 0 and 2 are divided: ids 1-2 and 3-9, 8-9 and 10-14."""
    return [dataset(cli, tmp_path / ids, ids) for ids in ("1-2", "3-9", "10-14")]


@pytest.mark.parametrize("format", FORMATS)
def test_merged_equals_drawn_at_once(cli: Cli, tmp_path: Path, format: str) -> None:
    more = ("--format", format)
    parts = [dataset(cli, tmp_path / ids, ids, *more) for ids in ("10-14", "1-2", "3-9")]
    once, out = dataset(cli, tmp_path / "once", "1-14", *more), tmp_path / "out"
    assert cli("merge", out, *parts) == 0 and "14 samples in" in cli.out, cli.err
    assert files(out) == files(once) and labels(out) == list(range(1, 15))
    assert cli.digest(out) == cli.digest(once)
    assert cli("verify", out, "--recompute", "4") == 0
    assert cli("resume", out) == 0 and "0 images in" in cli.out
    assert cli("merge", out, *parts) == 0 and "0 samples in" in cli.out


def test_trajectories_are_joined(cli: Cli, tmp_path: Path) -> None:
    more = ("--save", "trajectory=0-1", "--eta", "1", "--solver", "ddim")
    parts = [dataset(cli, tmp_path / ids, ids, *more) for ids in ("0-5", "4-6", "7-11")]
    once, out = dataset(cli, tmp_path / "once", "0-11", *more), tmp_path / "out"
    assert cli("merge", out, *parts) == 0, cli.err
    assert files(out) == files(once)
    assert cli("verify", out, "--rollout", "--recompute", "3") == 0


def test_samples_in_several_datasets(cli: Cli, tmp_path: Path) -> None:
    """Equal ones are taken once, also if each dataset lacks units that the other one has."""
    parts = [dataset(cli, tmp_path / name, ids) for name, ids in (("a", "0-9"), ("b", "2-15"))]
    once = dataset(cli, tmp_path / "once", "0-15")
    Folder(parts[0]).forget(1)
    Folder(parts[1]).forget(2)
    out = tmp_path / "out"
    assert cli("merge", out, *parts) == 4 and not out.exists()
    assert "got none of the id 10. Run `fastdiff resume" in cli.err and str(parts[1]) in cli.err
    parts.append(dataset(cli, tmp_path / "c", "10-11"))
    assert cli("merge", out, *parts) == 0, cli.err
    assert files(out) == files(once)


@pytest.mark.parametrize("sample, status", [(7, 0), (4, 4)])
def test_unequal_samples_are_refused(cli: Cli, tmp_path: Path, sample: int, status: int) -> None:
    """Another picture in a dataset that is consistent in itself; ids 4 and 5 are in both."""
    parts = [dataset(cli, tmp_path / name, ids) for name, ids in (("a", "0-5"), ("b", "4-7"))]
    folder, shard = Folder(parts[1]), parts[1] / "shards/00000/000000001.npy"
    flip(shard, 64 * (sample - 8))
    record = read_record(folder.record_path(1), 1)
    record["files"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    record["pixels"] = pixels_sha256(FORMATS["npy"].read(parts[1], record))
    folder.record_path(1).write_text(json.dumps(with_checksum(record)))
    assert verify(folder).fine
    assert cli("merge", tmp_path / "out", *parts) == status
    assert ("expected equal samples of unit 1 in" in cli.err) == bool(status)


@pytest.mark.parametrize(
    "more, line",
    [
        (("--seed", "1"), "seed: 0 there, 1 here."),
        (("--steps", "3"), "sampling.steps: 2 there, 3 here."),
        (("--unit", "2"), "unit: 4 there, 2 here."),
        (("--classes", "5"), "conditions.classes"),
    ],
)
def test_other_specs_are_refused_by_the_first_difference(
    cli: Cli, tmp_path: Path, more: tuple[str, ...], line: str
) -> None:
    a, b = dataset(cli, tmp_path / "a", "0-3"), dataset(cli, tmp_path / "b", "4-7", *more)
    assert cli("merge", tmp_path / "out", a, b) == 3
    assert len(cli.err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
    assert f"expected datasets of one run spec but for their ids, got {a} and {b}" in cli.err
    assert f"which differ in {line}" in cli.err


def test_arguments_that_are_refused(cli: Cli, tmp_path: Path, three: list[Path]) -> None:
    for arguments, status, message in (
        ([tmp_path / "out", three[0]], 2, "expected two datasets or more, got 1."),
        ([tmp_path / "out", three[0], three[2]], 2, f"got none between 2 in {three[0]} and 10 in"),
        ([tmp_path / "out", three[0], tmp_path / "no"], 2, "expected a dataset in"),
        ([three[0], *three], 2, f"outside the dataset {three[0]}"),
        ([three[0] / "below", *three], 2, f"outside the dataset {three[0]}"),
    ):
        before = files(tmp_path)
        assert cli("merge", *arguments) == status and message in cli.err, cli.err
        assert files(tmp_path) == before
    assert cli("merge", tmp_path / "out", *three[:2]) == 0
    assert cli("merge", tmp_path / "out", *three) == 3
    assert "got another run: ids: [1, 9] there, [1, 14] here." in cli.err


def test_damage_is_named(cli: Cli, tmp_path: Path, three: list[Path]) -> None:
    flip(three[1] / "shards/00000/000000001.npy")
    assert cli("merge", tmp_path / "out", *three) == 4
    assert f"expected unit 1 of {three[1]} as it was written" in cli.err
    assert cli("verify", three[1]) == 4 and cli("resume", three[1]) == 0
    assert cli("merge", tmp_path / "out", *three) == 0 and verify(Folder(tmp_path / "out")).fine


def test_conditions_files_are_joined(cli: Cli, tmp_path: Path) -> None:
    def lines(name: str, first: int, last: int) -> Path:
        text = "\n".join(f"{7 * i % 100}" for i in range(first, last + 1))
        (tmp_path / name).write_text(text + "\n" * (name == "all"))
        return tmp_path / name

    parts = [
        dataset(cli, tmp_path / f"{a}", f"{a}-{b}", "--conditions", lines(f"lines{a}", a, b))
        for a, b in ((2, 5), (4, 8), (9, 9))
    ]
    once = dataset(cli, tmp_path / "once", "2-9", "--conditions", lines("all", 2, 9))
    assert cli("merge", tmp_path / "out", *parts) == 0, cli.err
    assert files(tmp_path / "out") == files(once)
    (tmp_path / "lines4").write_text("28\n36\n42\n49\n56")
    other = dataset(cli, tmp_path / "other", "4-8", "--conditions", tmp_path / "lines4")
    assert cli("merge", tmp_path / "second", parts[0], other) == 2
    assert "expected one condition of the id 5, got another one in" in cli.err


def test_killed_at_any_call(cli: Cli, tmp_path: Path, three: list[Path]) -> None:
    once = files(dataset(cli, tmp_path / "once", "1-14"))
    calls, kills, out = 0, 0, tmp_path / "out"
    while True:
        status = run_until(calls, ["merge", str(out), *map(str, three)])
        if status == 0:
            break
        assert status == -9
        kills, calls = kills + 1, calls + 2
        if calls % 4 and (out / "spec.json").exists():
            assert cli("resume", out) == 0, cli.err
        else:
            assert cli("merge", out, *three) == 0, cli.err
        found = files(out)
        assert found | {"grid.png": b""} == once | {"grid.png": b""}, calls
        assert not verify(Folder(out)).foreign
        shutil.rmtree(out)
    assert kills >= 10


def run_until(call: int, command: list[str]) -> int:
    """Runs a command in a copy of this process, killed before a call that changes the disk (tiny.py
    counts them), and returns its status.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.environ["TINY_KILL"] = f"@{call}"
        sys.modules.pop("tiny", None)
        importlib.import_module("tiny")
        os._exit(main(command))
    finally:
        os._exit(70)


def test_from_python(tmp_path: Path, three: list[Path]) -> None:
    counts: list[int] = []
    report = jobs.merge(tmp_path / "out", three, progress=counts.append)
    assert report.complete and (report.made, report.images) == (4, 14) and counts == [3, 4, 4, 3]
