"""A dataset that is given further ids equals the one that is drawn at once, to the byte."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from damaged_runs import Cli
from workers import Worker, wait

from fastdiff import jobs
from fastdiff.jobs.folder import Folder
from fastdiff.jobs.formats import FORMATS
from fastdiff.jobs.job import Job
from fastdiff.jobs.records import read_record, with_checksum
from fastdiff.jobs.verify import verify

UNIT = 4
RUN = ("--model", "tiny:factory", "--unit", str(UNIT), "--steps", "2", "--threads", "1")


def files(folder: Path) -> dict[str, bytes]:
    """Returns all files but those that say when and where they were made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("log", "units")
    }


def labels(folder: Path) -> list[int]:
    numbers = Folder(folder).spec.units.numbers
    records = [read_record(Folder(folder).record_path(unit), unit) for unit in numbers]
    return [label for record in records for label in record["labels"]]


@pytest.mark.parametrize("format", FORMATS)
def test_grown_in_parts_equals_drawn_at_once(cli: Cli, tmp_path: Path, format: str) -> None:
    """Spec, data files, manifest and picture of all formats; whole units are not made again."""
    run, parts, once = (*RUN, "--format", format), tmp_path / "parts", tmp_path / "once"
    assert cli("sample", "--out", parts, "--ids", "6-13", *run) == 0
    whole = Folder(parts).record_path(2)  # ids 8-11, between the first and the last unit
    before = whole.stat().st_mtime_ns
    assert cli("sample", "--out", parts, "--ids", "6-16") == 0, "flags that are left out are kept"
    assert f"extending {parts} from the ids 6-13 to 6-16" in cli.out
    assert cli("sample", "--out", parts, "--ids", "1-21", *run) == 0
    assert cli("sample", "--out", parts, "--ids", "1-21", *run) == 0 and "0 images" in cli.out
    assert whole.stat().st_mtime_ns == before
    assert cli("sample", "--out", once, "--ids", "1-21", *run) == 0
    assert files(parts) == files(once) and labels(parts) == labels(once) == list(range(1, 22))
    assert cli.digest(parts) == cli.digest(once)
    check = verify(Folder(parts), recompute=6, trust=True)
    assert check.fine and not check.foreign and len(check.recomputed) == 6


def test_trajectories_of_a_grown_dataset(cli: Cli, tmp_path: Path) -> None:
    run = (*RUN, "--save", "trajectory", "--eta", "1")
    assert cli("sample", "--out", tmp_path / "parts", "--ids", "0-5", *run) == 0
    for name in ("parts", "once"):
        assert cli("sample", "--out", tmp_path / name, "--ids", "0-9", *run) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "once")
    assert cli("verify", tmp_path / "parts", "--rollout", "--recompute", "3") == 0


def test_from_python(tmp_path: Path) -> None:
    settings = {"seed": 3, "unit": UNIT, "steps": 2, "threads": 1}
    out = tmp_path / "run"
    assert jobs.run(Job.plan("tiny:factory", ids=(0, 5), **settings), out).made == 2  # type: ignore[arg-type]
    report = jobs.run(Job.plan("tiny:factory", ids=(0, 9), **settings), out)  # type: ignore[arg-type]
    assert (report.units, report.made, report.complete) == (3, 2, True)
    with pytest.raises(jobs.SpecMismatch, match="seed: 3 there, 4 here"):
        jobs.run(Job.plan("tiny:factory", ids=(0, 19), **{**settings, "seed": 4}), out)  # type: ignore[arg-type]
    with pytest.raises(jobs.SpecMismatch, match="ids"):
        jobs.run(Job.plan("tiny:factory", ids=(0, 5), **settings), out)  # type: ignore[arg-type]
    assert Folder(out).spec.ids == (0, 9)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--ids", "0-31", "--seed", "1"), "  seed: 0 there, 1 here"),
        (("--ids", "0-31", "--classes", "3"), "  conditions: {'classes': ["),
        (("--ids", "0-4"), "  ids: (0, 5) there, (0, 4) here"),
        (("--ids", "6-9"), "  ids: (0, 5) there, (6, 9) here"),
    ],
)
def test_refused(cli: Cli, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    """Other settings, fewer ids and ids without the ones that are there change no file."""
    out = tmp_path / "run"
    assert cli("sample", "--out", out, "--ids", "0-5", *RUN) == 0
    before = files(out)
    assert cli("sample", "--out", out, *more) == 3
    assert message in cli.err and "ids: " not in cli.err.replace(message, "")
    assert files(out) == before


def test_a_conditions_file_of_more_lines(cli: Cli, tmp_path: Path) -> None:
    def lines(name: str, first: int, last: int) -> tuple[str, ...]:
        path = tmp_path / name
        path.write_text("".join(f"{7 * i % 100}\n" for i in range(first, last + 1)))
        return "--ids", f"{first}-{last}", "--conditions", str(path)

    out, once = tmp_path / "run", tmp_path / "once"
    assert cli("sample", "--out", out, *RUN, *lines("few", 2, 5)) == 0
    before = files(out)
    assert cli("sample", "--out", out, "--ids", "0-9") == 2
    assert "expected --conditions with a line for each of the ids 0-9, got none." in cli.err
    asked = lines("more", 0, 9)
    (tmp_path / "more").write_text((tmp_path / "more").read_text().replace("\n21\n", "\n22\n"))
    assert cli("sample", "--out", out, *asked) == 3
    assert "got another line for the id 3, line 4 of" in cli.err and files(out) == before
    for folder in (out, once):
        assert cli("sample", "--out", folder, *RUN, *lines("more", 0, 9)) == 0
    assert files(out) == files(once) and labels(out) == [7 * i % 100 for i in range(10)]


def test_killed_at_any_call(cli: Cli, tmp_path: Path) -> None:
    """SIGKILL before each call that changes the disk: the same command, or resume, ends it."""
    begun, once = tmp_path / "begun", tmp_path / "once"
    asked = ("--ids", "0-9", *RUN)
    assert cli("sample", "--out", begun, "--ids", "2-5", *RUN) == 0
    assert cli("sample", "--out", once, *asked) == 0
    expected, kills, calls = files(once), 0, 0
    while True:
        out = shutil.copytree(begun, tmp_path / f"run-{calls}")
        sys.modules.pop("tiny", None)  # imported in the process, with the fault of its environment
        arguments = ["sample", "--out", str(out), *asked, "--trust"]
        worker = Worker("forked", arguments, {"TINY_KILL": f"@{calls}"}, tmp_path / "out.txt")
        wait([worker])
        if worker.status == 0:
            break
        assert worker.status == -9, (tmp_path / "out.txt").read_text()
        kills, calls = kills + 1, calls + 2
        same = ("sample", "--out", out, *asked)
        if calls % 4 or Folder(out).spec.ids == (2, 5):
            assert cli(*same) == 0, cli.err
        else:
            assert cli("resume", out) == 0, cli.err
        assert files(out) == expected, f"after a kill before call {calls - 2}"
        assert not verify(Folder(out)).foreign
        shutil.rmtree(out)
    assert kills >= 10


def test_samples_keep_their_bits_or_nothing_is_written(cli: Cli, tmp_path: Path) -> None:
    """A folder whose samples this machine does not make: the unit of both kinds is refused."""
    out = tmp_path / "run"
    assert cli("sample", "--out", out, "--ids", "0-5", *RUN) == 0
    path = Folder(out).record_path(1)
    record = read_record(path, 1) | {"pixels": "0" * 64}
    path.write_text(json.dumps(with_checksum(record)))
    shard = (out / "shards/00000/000000001.npy").read_bytes()
    assert cli("sample", "--out", out, "--ids", "0-9") == 1
    assert "expected the samples 4-5 of" in cli.err and "got others" in cli.err
    assert (out / "shards/00000/000000001.npy").read_bytes() == shard


def test_a_late_record_of_a_worker_with_fewer_ids(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli("sample", "--out", out, "--ids", "0-5", *RUN) == 0
    kept = {p: p.read_bytes() for p in out.rglob("000000001.*")}
    assert cli("sample", "--out", out, "--ids", "0-9") == 0
    expected = files(out)
    for path, content in kept.items():
        path.write_bytes(content)
    assert cli("info", out) == 0 and "unit 1 corrupt" in cli.out and "has other ids" in cli.out
    assert cli("resume", out) == 0 and "4 images" in cli.out
    assert files(out) == expected


def test_export_of_a_grown_dataset(cli: Cli, tmp_path: Path) -> None:
    assert cli("sample", "--out", tmp_path / "run", "--ids", "0-5", *RUN) == 0
    assert cli("sample", "--out", tmp_path / "run", "--ids", "0-9") == 0
    out = tmp_path / "all.npz"
    assert cli("export", tmp_path / "run", "--format", "npz", "--out", out) == 0
    with np.load(out) as file:
        assert file["arr_0"].shape == (10, 8, 8, 1) and file["arr_1"].tolist() == list(range(10))
