"""Damaged files of a dataset: each is named in a sentence, and `resume` restores the digest."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged_runs import RECORD, RUN, SHARD, Cli, cut, flip, pixels, state

from fastdiff.jobs import Folder
from fastdiff.jobs import quick_check as module
from fastdiff.jobs.manifest import has_manifest
from fastdiff.jobs.quick_check import quick_check
from fastdiff.jobs.records import read_record, with_checksum
from fastdiff.jobs.spec import RunSpec

NONE = f"fastdiff.jobs: expected the record of unit 3 in {{run}}/{RECORD}, got no JSON object. "
NONE += "Run `fastdiff resume {run}`."
DAMAGE: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    # damage; what verify says about unit 3; whether the quick check finds it
    "a byte of a shard": (
        lambda r: flip(r / SHARD),
        "{run}/" + SHARD + " is not as it was written",
        False,
    ),
    "a shard cut short": (
        lambda r: cut(r / SHARD, 200),
        "{run}/" + SHARD + " has 200 bytes, not 384",
        True,
    ),
    "a shard too long": (
        lambda r: (r / SHARD).write_bytes(bytes(500)),
        "{run}/" + SHARD + " has 500 bytes, not 384",
        True,
    ),
    "a shard deleted": (lambda r: (r / SHARD).unlink(), "{run}/" + SHARD + " is missing", True),
    "a digit of a record": (
        lambda r: flip(r / RECORD, (r / RECORD).read_bytes().index(b'"seed": 0') + 8),
        "{run}/" + RECORD + " is not as it was written",
        True,
    ),
    "a record cut short": (lambda r: cut(r / RECORD, 300), NONE, True),
    "a record emptied": (lambda r: cut(r / RECORD, 0), NONE, True),
    "another's record": (
        lambda r: shutil.copy(str(r / RECORD).replace("3.json", "2.json"), r / RECORD),
        NONE.replace("no JSON object", "the one of unit 2"),
        True,
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_of_a_unit_is_named_and_repaired(
    what: str, run: Path, undisturbed: Path, cli: Cli
) -> None:
    damage, says, seen = DAMAGE[what]
    expected, before = cli.digest(undisturbed), state(run, without=3)
    damage(run)
    assert cli("info", run) == 0
    assert (
        "5 of 6 units done" in cli.out and "0 missing, 0 failed, 1 corrupt" in cli.out
    ) == seen, cli.out
    if seen:  # a worker finds it without verify
        assert cli("resume", run) == 0 and cli.out.startswith("4 images")
        assert cli.digest(run) == expected
        damage(run)
    assert cli("verify", run) == 4
    lines = cli.out.splitlines()
    assert lines[0] == f"unit 3 is bad: {says.format(run=run)}"
    assert lines[1].startswith("5 of 6 units, 16 samples, digest ") and expected not in lines[1]
    assert lines[2] == f"not complete: `fastdiff resume {run}` computes the rest"
    assert state(run, without=3) == before, "verify changes nothing"
    assert cli("resume", run) == 0 and cli.out.startswith("4 images")
    assert cli.digest(run) == expected and pixels(run) == pixels(undisturbed)
    assert state(run, without=3) == before and not (run / "verify.json").exists()


def test_missing_units_are_made_before_others_are_checked(
    run: Path, undisturbed: Path, cli: Cli
) -> None:
    """A worker makes missing units first, and then checks the others: unit 4, then unit 3."""
    (run / RECORD.replace("3.json", "4.json")).unlink()
    cut(run / SHARD, 300)
    before = set((run / "log").glob("*.jsonl"))
    assert cli("resume", run) == 0 and cli.digest(run) == cli.digest(undisturbed)
    (log,) = set((run / "log").glob("*.jsonl")) - before
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["unit"] for event in events if event["event"] == "begin"] == [4, 3]


def test_missing_units_are_named_and_made(run: Path, undisturbed: Path, cli: Cli) -> None:
    expected = cli.digest(undisturbed)
    (run / RECORD).unlink()
    before = state(run, without=3)
    assert cli("verify", run) == 4 and cli.out.startswith(
        "1 of 6 units have no record: 3\n5 of 6 units, 16 samples"
    )
    assert (
        cli("info", run) == 0
        and "1 missing, 0 failed, 0 corrupt" in cli.out
        and "no worker is active" in cli.out
    )
    assert (
        cli("resume", run) == 0 and cli.digest(run) == expected and state(run, without=3) == before
    )
    shutil.rmtree(run / "units")
    shutil.rmtree(run / "shards")
    assert cli("verify", run) == 4 and "6 of 6 units have no record: 0, 1, 2, 3, 4, 5" in cli.out
    assert (
        cli("resume", run) == 0 and cli.out.startswith("20 images") and cli.digest(run) == expected
    )


def test_any_bit_of_a_record_counts(run: Path) -> None:
    """The quick check finds any flipped bit of a record, in that unit alone."""
    folder, path = Folder(run), run / RECORD
    for position in range(0, path.stat().st_size, 3):
        flip(path, position, position % 8)
        assert [s.unit for s in quick_check(folder) if s.problem] == [3], (
            position,
            path.read_bytes(),
        )
        flip(path, position, position % 8)
    assert not any(s.problem for s in quick_check(folder))


def test_the_quick_check_is_the_same_with_threads(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread (local files) and many threads (a network file system) give the same result."""
    (run / read_record(run / RECORD, 3)["files"][0]["name"]).unlink()
    checks = []
    for seconds in (0.0, math.inf):
        monkeypatch.setattr(module, "LOCAL", seconds)
        monkeypatch.setattr(module, "PART", 1)
        checks.append(list(quick_check(Folder(run))))
    assert checks[0] == checks[1] and [s.unit for s in checks[0] if s.problem] == [3]


def test_any_bit_of_the_spec_counts(run: Path, cli: Cli) -> None:
    """A modified spec is refused in one sentence, so that a run never continues as another one."""
    path = run / "spec.json"
    spec, refused = Folder(run).spec, 0
    size, step = path.stat().st_size, 151  # most of it is the plan's table
    positions = sorted(
        {*range(0, 1500, 3), *range(1500, size, step)}
    )  # the first part, and samples of the rest
    for position in positions:
        flip(path, position, position % 7)
        try:
            # upper and lower case of hexadecimal numbers are the same
            assert Folder(run).spec.hash == spec.hash
        except ValueError as error:
            refused += 1
            assert re.fullmatch(r"fastdiff\.jobs: expected .*", str(error)) and str(path) in str(
                error
            ), str(error)
        flip(path, position, position % 7)
    assert refused > 0.95 * len(positions) and Folder(run).spec.hash == spec.hash
    before = state(run)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    for command in (("info", run), ("verify", run), ("resume", run), ("sample", "--out", run)):
        assert cli(*command) == 2
        assert (
            f"got {_changed(path)}. The file was changed after it was written; take it from a"
            " backup." in cli.err
        )
    assert state(run) == before


def _changed(path: Path) -> str:
    value = json.loads(path.read_text())
    try:
        RunSpec.from_json(value, "")
    except ValueError as error:
        return re.findall(r"got ([0-9a-f]{64})", str(error))[0]
    raise AssertionError("the changed spec is taken for the former one")


def test_wrong_pixels_with_a_matching_record_are_found_by_recomputing(
    run: Path, undisturbed: Path, cli: Cli
) -> None:
    """A shard and its record agree with each other, but not with the model."""
    expected, before = cli.digest(undisturbed), state(run, without=3)
    record = read_record(run / RECORD, 3)
    flip(run / SHARD)
    content = (run / SHARD).read_bytes()
    record["files"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    record["pixels"] = hashlib.sha256(content[128:]).hexdigest()
    (run / RECORD).write_text(json.dumps(with_checksum(record)) + "\n")
    assert cli("verify", run) == 0 and expected not in cli.out
    assert cli("verify", run, "--recompute", "6") == 4
    assert cli.out.startswith(
        "unit 3 is bad: made again, it has other pixels\n"
        "computed again and compared: units 0, 1, 2, 3, 4, 5\n"
    )
    assert (
        cli("resume", run) == 0 and cli.digest(run) == expected and state(run, without=3) == before
    )
    assert cli("verify", run, "--recompute", "6") == 0


def test_what_is_made_from_the_records_is_made_again(
    run: Path, undisturbed: Path, cli: Cli
) -> None:
    manifest = (undisturbed / "manifest.jsonl").read_bytes()
    for position in (40, len(manifest) // 2, len(manifest) - 30):
        flip(run / "manifest.jsonl", position)
        assert not has_manifest(Folder(run))
        assert cli("resume", run) == 0 and cli.out.startswith("0 images")
        assert (run / "manifest.jsonl").read_bytes() == manifest
    (run / "grid.png").unlink()
    before = (run / "manifest.jsonl").stat().st_mtime_ns
    assert (
        cli("resume", run) == 0
        and (run / "grid.png").read_bytes() == (undisturbed / "grid.png").read_bytes()
    )
    assert (run / "manifest.jsonl").stat().st_mtime_ns == before, "rewritten without need"
    (run / "verify.json").write_text('{"bad": {"x": 1}}')  # damaged itself: it is ignored
    assert cli("resume", run) == 0 and cli.digest(run)


def test_what_is_no_part_of_the_run_stays(run: Path, undisturbed: Path, cli: Cli) -> None:
    """The record of a unit beyond the run is ignored, and other files are named and not touched."""
    record = with_checksum({**read_record(run / RECORD, 3), "unit": 99})
    (run / "units/00000/000000099.json").write_text(json.dumps(record) + "\n")
    (run / "notes.txt").write_text("keep me")
    (run / RECORD).unlink()
    assert cli("resume", run) == 0 and "6 of 6 units" in cli.out
    assert cli("verify", run) == 4
    assert "unit 99 is bad" in cli.out and "notes.txt is not part of the dataset" in cli.out
    assert cli("resume", run) == 0 and cli.digest(run) == cli.digest(undisturbed)
    assert (run / "notes.txt").read_text() == "keep me" and not (
        run / "units/00000/000000099.json"
    ).exists()
    assert (run / "manifest.jsonl").read_bytes() == (undisturbed / "manifest.jsonl").read_bytes()


STRAY: dict[str, Callable[[Path], object]] = {
    "units/000000": lambda r: (r / "units/000000").mkdir(),
    "units/000000/": lambda r: shutil.copytree(r / "units/00000", r / "units/000000"),
    "units/00000/0000000003.json": lambda r: _copy(r, "units/00000/0000000003.json"),
    "units/00000/3.json": lambda r: _copy(r, "units/00000/3.json"),
    "units/00000/000001003.json": lambda r: _copy(r, "units/00000/000001003.json"),
    "units/00001": lambda r: (r / "units/00001").mkdir(),
    "units/1": lambda r: (r / "units/1").mkdir(),
    "failed/3.json": lambda r: _copy(r, "failed/3.json"),
    "failed/٣.json": lambda r: _copy(r, "failed/٣.json"),
}


def _copy(run: Path, name: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    shutil.copy(run / RECORD, run / name)


@pytest.mark.parametrize("name", STRAY)
def test_names_that_are_no_record_s_count_for_nothing(
    name: str, run: Path, undisturbed: Path, cli: Cli
) -> None:
    """Every unit has one name; a second one does not count it twice."""
    expected = cli.digest(undisturbed)
    STRAY[name](run)
    assert cli("info", run) == 0 and "6 of 6 units done" in cli.out and "0 missing" in cli.out
    assert cli("verify", run) == 0
    shown = name.rstrip("/") in cli.out
    assert shown == (name.startswith("units/") and name != "units/00001"), cli.out
    assert cli.out.splitlines()[-1] == f"6 of 6 units, 20 samples, digest {expected}"
    (run / "manifest.jsonl").unlink()
    assert cli("resume", run) == 0
    lines = (run / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 7 and json.loads(lines[-1])["units"] == 6


def _renewed(**changes: Any) -> Callable[[Path], None]:
    """Returns what writes other values into the record of unit 3, with a checksum that fits."""

    def damage(run: Path) -> None:
        record = json.loads((run / RECORD).read_text())
        for key, change in changes.items():
            record[key] = change(record[key]) if callable(change) else change
        (run / RECORD).write_text(json.dumps(with_checksum(record)) + "\n")

    return damage


FORGED = {
    "seed": (_renewed(seed=1), "has the seed 1, the run has 0"),
    "labels": (
        _renewed(labels=lambda labels: labels[::-1]),
        "has other labels than the run's conditions",
    ),
    "no labels": (_renewed(labels=None), "has other labels than the run's conditions"),
    "shape": (
        _renewed(shape=lambda shape: [shape[0], shape[1] * shape[2], 1, shape[3]]),
        "",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_record_with_a_new_checksum_is_compared_with_the_spec(
    what: str, run: Path, undisturbed: Path, cli: Cli
) -> None:
    expected, (damage, says) = cli.digest(undisturbed), FORGED[what]
    damage(run)
    assert cli("verify", run) == 4
    assert cli.out.startswith("unit 3 is bad: ") and says in cli.out.splitlines()[0]
    assert cli("resume", run) == 0 and cli.out.startswith("4 images")
    assert cli.digest(run) == expected


def test_labels_of_a_conditions_file_are_compared(tmp_path: Path, cli: Cli) -> None:
    lines = [str(i % 7) for i in range(20)]
    file, run = tmp_path / "classes.txt", tmp_path / "run"
    file.write_text("\n".join(lines) + "\n")
    assert cli("sample", "--out", run, *RUN, "--conditions", file) == 0
    assert cli("verify", run) == 0
    _renewed(labels=[0, 0, 0, 0])(run)
    assert cli("verify", run) == 4 and "other labels than the run's conditions" in cli.out
    own = next(run.glob("conditions-*.txt"))
    own.write_text(own.read_text().replace("0", "1"))
    assert cli("verify", run) == 4
    assert f"{own} is not the conditions file that the run began with" in cli.out


@pytest.mark.parametrize("name", [SHARD, RECORD])
def test_a_folder_of_a_files_name_is_named(
    name: str, run: Path, undisturbed: Path, cli: Cli
) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    assert cli("resume", run) == 1
    assert f"got a folder of its name, {run / name}" in cli.err
    assert "move that folder away, then run `fastdiff resume`" in cli.err
    (run / name).rmdir()
    assert cli("resume", run) == 0
    assert cli.digest(run) == cli.digest(undisturbed)
