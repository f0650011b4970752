"""Damage to a dataset, its disk, its model and its numbers: each is named in a sentence, nothing
good is lost, and `resume` restores the digest where it can.

One file over 400 lines: every kind of damage is done to the same finished run, by the same helpers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastdiff import Schedule
from fastdiff.cli import main
from fastdiff.jobs import Folder
from fastdiff.jobs import quick_check as module
from fastdiff.jobs.quick_check import quick_check
from fastdiff.jobs.records import read_record, with_checksum
from fastdiff.jobs.spec import RunSpec
from fastdiff.jobs.verify import has_manifest, verify

RUN = ("--model", "tiny:factory", "--ids", "2-21", "--unit", "4", "--steps", "3", "--threads", "1")
UNITS = 6
SHARD, RECORD = "shards/00000/000000003.npy", "units/00000/000000003.json"


class Cli:
    """Runs commands in this process. Attributes: out, err: of the latest one."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> int:
        status = main([str(a) for a in arguments])
        self.out, self.err = self._capsys.readouterr()
        return status

    def digest(self, folder: Path) -> str:
        """Of a dataset that must be whole."""
        assert self("verify", folder, "--json") == 0, self.out
        return json.loads(self.out)["digest"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole dataset, which nobody touches."""
    path = tmp_path_factory.mktemp("peace") / "run"
    assert main(["sample", "--out", str(path), *RUN]) == 0
    return path


@pytest.fixture
def run(peace: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(peace, tmp_path / "run")


def state(folder: Path, without: int | None = None) -> dict[str, tuple[str, int]]:
    """Hash and time of every file of the units, except one unit's."""
    paths = [p for kind in ("shards", "units") for p in (folder / kind).rglob("*") if p.is_file()]
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest(),
            p.stat().st_mtime_ns,
        )
        for p in paths
        if without is None or int(p.stem) != without
    }


def pixels(folder: Path) -> dict[str, str]:
    return {name: value[0] for name, value in state(folder).items() if name.startswith("shards/")}


def flip(path: Path, position: int = -1, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


# -- files of units

NONE = f"fastdiff.jobs: expected the record of unit 3 in {{run}}/{RECORD}, got no JSON object. "
NONE += "Run `fastdiff resume {run}`."
DAMAGE: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    # what is done; what verify says of unit 3; whether a look at names, sizes and records sees it,
    # too
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
def test_damage_of_a_unit_is_named_and_mended(what: str, run: Path, peace: Path, cli: Cli) -> None:
    damage, says, seen = DAMAGE[what]
    expected, before = cli.digest(peace), state(run, without=3)
    damage(run)
    assert cli("info", run) == 0
    assert (
        "5 of 6 units done" in cli.out and "0 missing, 0 failed, 1 corrupt" in cli.out
    ) == seen, cli.out
    if seen:  # a worker sees it by itself
        assert cli("resume", run) == 0 and cli.out.startswith("4 images")
        assert cli.digest(run) == expected
        damage(run)
    assert cli("verify", run) == 4
    lines = cli.out.splitlines()
    assert lines[0] == f"unit 3 is bad: {says.format(run=run)}"
    assert lines[1].startswith("5 of 6 units, 16 samples, digest ") and expected not in lines[1]
    assert lines[2] == f"not whole: `fastdiff resume {run}` makes the rest"
    assert state(run, without=3) == before, "verify changes nothing"
    assert cli("resume", run) == 0 and cli.out.startswith("4 images")
    assert cli.digest(run) == expected and pixels(run) == pixels(peace)
    assert state(run, without=3) == before and not (run / "verify.json").exists()


def test_what_is_missing_is_made_before_anything_is_looked_for(
    run: Path, peace: Path, cli: Cli
) -> None:
    """A worker of a large run does not read all records first: it finds unit 3 damaged when unit 4
    is made.
    """
    (run / RECORD.replace("3.json", "4.json")).unlink()
    cut(run / SHARD, 300)
    before = set((run / "log").glob("*.jsonl"))
    assert cli("resume", run) == 0 and cli.digest(run) == cli.digest(peace)
    (log,) = set((run / "log").glob("*.jsonl")) - before
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["unit"] for event in told if event["event"] == "begin"] == [4, 3]


def test_missing_units_are_named_and_made(run: Path, peace: Path, cli: Cli) -> None:
    expected = cli.digest(peace)
    (run / RECORD).unlink()
    before = state(run, without=3)
    assert cli("verify", run) == 4 and cli.out.startswith(
        "1 of 6 units have no record: 3\n5 of 6 units, 16 samples"
    )
    assert (
        cli("info", run) == 0
        and "1 missing, 0 failed, 0 corrupt" in cli.out
        and "nobody works on it" in cli.out
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
    """Whatever bit is wrong, a look at the records finds it, in that unit alone."""
    folder, path = Folder(run), run / RECORD
    for position in range(0, path.stat().st_size, 3):
        flip(path, position, position % 8)
        assert [s.unit for s in quick_check(folder) if s.problem] == [3], (
            position,
            path.read_bytes(),
        )
        flip(path, position, position % 8)
    assert not any(s.problem for s in quick_check(folder))


def test_a_look_is_the_same_near_and_far(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one thread where files are near, by many where they are not."""
    (run / read_record(run / RECORD, 3)["files"][0]["name"]).unlink()
    looks = []
    for seconds in (0.0, math.inf):
        monkeypatch.setattr(module, "LOCAL", seconds)
        monkeypatch.setattr(module, "PART", 1)
        looks.append(list(quick_check(Folder(run))))
    assert looks[0] == looks[1] and [s.unit for s in looks[0] if s.problem] == [3]


def test_any_bit_of_the_spec_counts(run: Path, cli: Cli) -> None:
    """A spec is the same or it is refused in one sentence: a run never goes on as another."""
    path = run / "spec.json"
    spec, refused = Folder(run).spec, 0
    size, step = path.stat().st_size, 151  # most of it is the plan's table
    positions = sorted(
        {*range(0, 1500, 3), *range(1500, size, step)}
    )  # what comes first, and every part of the rest
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


def test_pixels_that_nobody_can_tell_but_by_making_them(run: Path, peace: Path, cli: Cli) -> None:
    """A shard and its record agree with each other, only not with the model."""
    expected, before = cli.digest(peace), state(run, without=3)
    record = read_record(run / RECORD, 3)
    flip(run / SHARD)
    content = (run / SHARD).read_bytes()
    record["files"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    record["pixels"] = hashlib.sha256(content[128:]).hexdigest()
    (run / RECORD).write_text(json.dumps(with_checksum(record)) + "\n")
    assert cli("verify", run) == 0 and expected not in cli.out
    assert cli("verify", run, "--recompute", "6") == 4
    assert cli.out.startswith(
        "unit 3 is bad: made again, it has other pixels\nmade again and compared: units 0, 1, 2, 3,"
        " 4, 5\n"
    )
    assert (
        cli("resume", run) == 0 and cli.digest(run) == expected and state(run, without=3) == before
    )
    assert cli("verify", run, "--recompute", "6") == 0


def test_what_is_made_from_the_records_is_made_again(run: Path, peace: Path, cli: Cli) -> None:
    manifest = (peace / "manifest.jsonl").read_bytes()
    for position in (40, len(manifest) // 2, len(manifest) - 30):
        flip(run / "manifest.jsonl", position)
        assert not has_manifest(Folder(run))
        assert cli("resume", run) == 0 and cli.out.startswith("0 images")
        assert (run / "manifest.jsonl").read_bytes() == manifest
    (run / "grid.png").unlink()
    before = (run / "manifest.jsonl").stat().st_mtime_ns
    assert (
        cli("resume", run) == 0
        and (run / "grid.png").read_bytes() == (peace / "grid.png").read_bytes()
    )
    assert (run / "manifest.jsonl").stat().st_mtime_ns == before, "written anew without need"
    (run / "verify.json").write_text('{"bad": {"x": 1}}')  # damaged itself: it names nothing
    assert cli("resume", run) == 0 and cli.digest(run)


def test_what_is_no_part_of_the_run_stays(run: Path, peace: Path, cli: Cli) -> None:
    """A record of a unit beyond the run counts for nothing, and files of people are named and left
    alone.
    """
    record = with_checksum({**read_record(run / RECORD, 3), "unit": 99})
    (run / "units/00000/000000099.json").write_text(json.dumps(record) + "\n")
    (run / "notes.txt").write_text("keep me")
    (run / RECORD).unlink()
    assert cli("resume", run) == 0 and "6 of 6 units" in cli.out
    assert cli("verify", run) == 4
    assert "unit 99 is bad" in cli.out and "notes.txt is no part of the dataset" in cli.out
    assert cli("resume", run) == 0 and cli.digest(run) == cli.digest(peace)
    assert (run / "notes.txt").read_text() == "keep me" and not (
        run / "units/00000/000000099.json"
    ).exists()
    assert (run / "manifest.jsonl").read_bytes() == (peace / "manifest.jsonl").read_bytes()


# -- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """disk(options) mounts a file system in memory, or changes its options."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        if not place.exists():
            place.mkdir()
            told = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
                capture_output=True,
                text=True,
            )
            if told.returncode:
                place.rmdir()
                pytest.skip(f"no file system can be mounted here: {told.stderr.strip()}")
        else:
            subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
        return place

    yield mount
    if place.exists():
        subprocess.run(["umount", "-l", place], check=True)


FULL = re.compile(
    r"fastdiff (sample|resume): fastdiff\.jobs: expected to write into \S+, got '(No space left on"
    r" device|File too large)'"
    r"(; (unit \d+|manifest\.jsonl|grid\.png) is not written)?\. Finished units are intact; free"
    r" disk space or permit writing, then run "
    r"`fastdiff resume`\.\n"
)


def told(err: str) -> str:
    """What is left of stderr without the progress line."""
    return "".join(
        line for line in err.splitlines(keepends=True) if not line.startswith(("\r", "sampling"))
    ).lstrip("\n")


def test_a_full_disk(disk: Callable[[str], Path], peace: Path, cli: Cli) -> None:
    """The disk ends at any page of the run: what is there is whole, and with more room the run goes
    on.
    """
    expected, interrupted = cli.digest(peace), 0
    for pages in range(2, 60, 3):
        place = disk(f"size={4 * pages}k")
        status = cli("sample", "--out", place / "run", *RUN)
        if status == 0:
            break
        assert status == 1 and FULL.fullmatch(told(cli.err)), cli.err
        if (place / "run/spec.json").exists():
            interrupted += 1
            before = state(place / "run")
            check = verify(Folder(place / "run"))
            assert not check.bad and check.done == len(before) - len(pixels(place / "run"))
            assert cli("resume", place / "run") == 1 and FULL.fullmatch(told(cli.err)), cli.err
            assert {name: value[0] for name, value in before.items()}.items() <= dict(
                (name, value[0]) for name, value in state(place / "run").items()
            ).items()
        disk("size=1m")
        assert cli("sample", "--out", place / "run", *RUN) == 0, cli.err
        assert cli.digest(place / "run") == expected and pixels(place / "run") == pixels(peace)
        shutil.rmtree(place / "run")
    else:
        raise AssertionError("no size was enough")
    assert interrupted >= 5


def test_files_that_may_not_grow(tmp_path: Path, peace: Path, cli: Cli) -> None:
    """The same where nothing can be mounted: no file may be longer than a shard, so that no record
    can be written.
    """
    job = tmp_path / "run"
    assert cli("sample", "--out", job, *RUN) == 0
    shutil.rmtree(job / "units")
    before, limits = pixels(job), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        assert cli("resume", job) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert FULL.fullmatch(told(cli.err)) and "'File too large'; unit " in cli.err
    assert (
        pixels(job) == before
        and not list((job / "tmp").iterdir())
        and not list((job / "units").rglob("*.json"))
    )
    assert cli("resume", job) == 0 and cli.digest(job) == cli.digest(peace)


@pytest.fixture
def locked(
    disk: Callable[[str], Path], peace: Path, tmp_path: Path
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """(a dataset in which nothing can be written and of which unit 3 is missing, what unlocks
    it).
    """
    if os.geteuid() == 0:
        run = shutil.copytree(peace, disk("size=4m") / "run")
        (run / RECORD).unlink()
        disk("ro")
        yield run, lambda: disk("rw") and None
        return
    run = shutil.copytree(peace, tmp_path / "run")
    (run / RECORD).unlink()
    subprocess.run(["chmod", "-R", "a-w", run], check=True)
    yield run, lambda: subprocess.run(["chmod", "-R", "u+w", run], check=True) and None
    subprocess.run(["chmod", "-R", "u+w", run], check=True)


def test_a_read_only_folder(locked: tuple[Path, Callable[[], None]], peace: Path, cli: Cli) -> None:
    run, unlock = locked
    expected, before = cli.digest(peace), state(run)
    assert cli("info", run) == 0 and "1 missing" in cli.out
    assert cli("verify", run) == 4 and "1 of 6 units have no record: 3" in cli.out
    sentence = re.compile(
        r"fastdiff (sample|resume): fastdiff\.jobs: expected to write into \S+, "
        r"got '(Read-only file system|Permission denied)'\. "
        r"Finished units are intact; free disk space or permit writing, then run "
        r"`fastdiff resume`\.\n"
    )
    for command in (
        ("resume", run),
        ("sample", "--out", run),
        ("resume", run, "--verify", "--retry-failed"),
    ):
        assert cli(*command) == 1 and sentence.fullmatch(cli.err), cli.err
    assert (
        cli("sample", "--out", run.parent / "new" if os.geteuid() == 0 else run / "new", *RUN) == 1
    )
    assert sentence.fullmatch(cli.err), cli.err
    assert state(run) == before
    unlock()
    assert cli("resume", run) == 0 and cli.digest(run) == expected


# -- other runs, other models


def test_folders_of_other_things(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert cli("sample", "--out", tmp_path, *RUN) == 2
    assert (
        cli.err
        == f"fastdiff sample: fastdiff.jobs: expected {tmp_path} to be new, empty or a run's, got"
        " 'thesis.tex' and no spec.json in it. Name another folder.\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert (
        cli("sample", "--out", tmp_path / "thesis.tex", *RUN) == 2
        and "to be a folder, got a file" in cli.err
    )


def test_other_specs_are_refused_with_their_differences(run: Path, cli: Cli) -> None:
    before = state(run)
    assert cli("sample", "--out", run, *RUN, "--seed", "1", "--steps", "4", "--format", "png") == 3
    assert (
        cli.err == f"fastdiff sample: fastdiff.jobs: expected the run of {run}, got another in 3"
        " settings.\n"
        "  seed: 0 there, 1 here\n  steps: 3 there, 4 here\n  format: 'npy' there, 'png' here\n"
        f"Name another --out, or continue it as it was started: `fastdiff resume {run}`.\n"
    )
    assert (
        cli("sample", "--out", run, "--ids", "2-22") == 3
        and "  ids: (2, 21) there, (2, 22) here\n" in cli.err
    )
    assert state(run) == before and cli("sample", "--out", run, *RUN) == 0


def test_other_weights_and_other_code_are_refused(
    run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / RECORD).unlink()
    before = state(run)
    monkeypatch.setenv("TINY_WEIGHTS", "1")
    for command in (
        ("resume", run),
        ("sample", "--out", run, *RUN),
        ("verify", run, "--recompute", "1"),
    ):
        assert cli(*command) == 3
        assert re.fullmatch(
            rf"fastdiff \w+: fastdiff\.jobs: expected the run of {run}, got another in a"
            r" setting\.\n"
            r"  model\.weights_sha256: '[0-9a-f]{64}' there, '[0-9a-f]{64}' here\n",
            cli.err,
        ), cli.err
    monkeypatch.delenv("TINY_WEIGHTS")
    module = tmp_path / "edited.py"
    module.write_text("from tiny import factory as make\n\n\ndef factory():\n    return make()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli("sample", "--out", "other", *RUN, "--model", "edited:factory") == 0
    module.write_text(module.read_text() + "# a word\n")
    assert cli("resume", "other") == 3 and "model.source_sha256: " in cli.err
    assert state(run) == before and cli("resume", run) == 0


# -- numbers that are none


def test_a_unit_without_finite_samples(
    tmp_path: Path, peace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample 9, of unit 2, is not a number from the second step, at time 66: tried twice, named,
    left out, mended.
    """
    run = tmp_path / "run"
    levels = Folder(peace).spec.plan.levels
    assert levels is not None
    sigma = float(levels[1][1])
    assert sigma == pytest.approx(float(Schedule.linear(100).sigma[66]), rel=1e-12)
    what = f"sample 9 is not finite after step 1, sigma {sigma:g}"
    monkeypatch.setenv("TINY_NAN", "9@66")
    assert cli("sample", "--out", run, *RUN) == 5
    assert (
        f"unit 2 failed: {what}\n" in cli.out
        and "5 of 6 units are in" in cli.out
        and what in cli.err
    )
    failed = json.loads((run / "failed/000000002.json").read_text())
    assert failed == {"unit": 2, "what": what, "sample_id": 9, "step": 1, "sigma": sigma}
    [log] = (run / "log").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events if e.get("unit") == 2] == ["begin", "unfinite", "failed"]
    others = {name: value for name, value in pixels(peace).items() if "000000002" not in name}
    assert pixels(run) == others
    assert (
        cli("verify", run) == 4
        and f"unit 2 failed: {what}\n" in cli.out
        and "(--retry-failed)" in cli.out
    )
    assert cli("info", run) == 0 and "0 missing, 1 failed, 0 corrupt" in cli.out and what in cli.out
    assert cli("resume", run) == 5 and cli.out.startswith(f"unit 2 failed: {what}\n0 images"), (
        "tried again unasked"
    )
    assert cli("resume", run, "--retry-failed") == 5 and len(list((run / "log").iterdir())) == 3
    monkeypatch.delenv("TINY_NAN")
    assert cli("resume", run) == 5
    assert cli("resume", run, "--retry-failed") == 0 and cli.out.startswith("4 images")
    assert cli.digest(run) == cli.digest(peace) and pixels(run) == pixels(peace)


def test_numbers_that_are_none_once(
    tmp_path: Path, peace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("TINY_NAN", "9@66 once")
    assert cli("sample", "--out", run, *RUN) == 0
    [log] = (run / "log").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events if e.get("unit") == 2] == ["begin", "unfinite", "unit"]
    assert cli.digest(run) == cli.digest(peace) and not (run / "failed").exists()


def test_samples_outside_the_run_may_be_what_they_are(
    tmp_path: Path, peace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample 1 is computed with unit 0, whose ids in the run are 2 and 3."""
    monkeypatch.setenv("TINY_NAN", "1@66")
    assert cli("sample", "--out", tmp_path / "run", *RUN) == 0
    assert cli.digest(tmp_path / "run") == cli.digest(peace)


def test_a_unit_that_somebody_else_could_make(run: Path, peace: Path, cli: Cli) -> None:
    """One worker gave a unit up, another one made it: it is made."""
    (run / "failed").mkdir()
    (run / "failed/000000002.json").write_text(
        json.dumps({"unit": 2, "what": "sample 9 is not finite"})
    )
    (run / "failed/000000003.json").write_text("{")  # damaged
    (run / RECORD).unlink()
    assert (
        cli("resume", run) == 5
        and cli.out.startswith("unit 3 failed: ")
        and "unit 2" not in cli.out
    )
    assert f"{run / 'failed/000000003.json'} is not as it was written" in cli.out
    assert cli("resume", run, "--retry-failed") == 0 and cli.digest(run) == cli.digest(peace)


def test_the_digest_is_of_the_samples_alone(peace: Path, tmp_path: Path, cli: Cli) -> None:
    """Over a line a unit of first id, stop id and the SHA-256 of the pixels, whatever the
    format.
    """
    expected = hashlib.sha256(b"fastdiff dataset 1\n")
    for unit, (first, stop) in enumerate([(2, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 22)]):
        array = np.load(peace / f"shards/00000/{unit:09d}.npy")
        expected.update(f"{first} {stop} {hashlib.sha256(array.tobytes()).hexdigest()}\n".encode())
    assert cli.digest(peace) == expected.hexdigest()
    for format in ("png", "webdataset", "npz"):
        assert cli("sample", "--out", tmp_path / format, *RUN, "--format", format) == 0
        assert cli.digest(tmp_path / format) == expected.hexdigest()
