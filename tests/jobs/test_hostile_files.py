"""Files of a dataset that are damaged or made to do harm: one sentence, and nothing taken as good.

The spec, the records and the manifest have checksums, so no damage of them may pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import HOSTILE, bytes_damages, outcome, value_damages, within
from damaged_runs import RECORD, SHARD, UNITS, Cli

from fastdiff.jobs import Folder, Job, RunSpec
from fastdiff.jobs.conditions import Conditions
from fastdiff.jobs.export import export
from fastdiff.jobs.info import info
from fastdiff.jobs.manifest import MANIFEST, has_manifest
from fastdiff.jobs.quick_check import quick_check
from fastdiff.jobs.records import intact, read_record, with_checksum
from fastdiff.jobs.spec import plan_from_json, plan_to_json
from fastdiff.jobs.verify import remove_damaged_records, verify


def _again(value: dict[str, Any]) -> dict[str, Any]:
    """A spec with the hash that its content has, as someone who means harm would write it."""
    content = {k: v for k, v in value.items() if k != "hash"}
    text = json.dumps(content, sort_keys=True)
    return {"hash": hashlib.sha256(text.encode()).hexdigest(), **content}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_spec_that_is_no_json(text: bytes, run: Path) -> None:
    (run / "spec.json").write_bytes(text)
    for call in (lambda: Folder(run), lambda: export(run, "npy", run.parent / "out")):
        found = outcome(call)
        assert isinstance(found, str) and "spec.json" in found


def test_no_damaged_spec_is_taken(undisturbed: Path, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    good = (undisturbed / "spec.json").read_bytes()
    value = Folder(undisturbed).spec.to_json()
    for bad in bytes_damages(good, 0, 800):
        file.write_bytes(bad)
        found = outcome(lambda: Folder(tmp_path), repr(bad))
        assert isinstance(found, str) or json.loads(bad.decode("utf-8-sig")) == value, bad


def test_any_value_in_a_spec(undisturbed: Path, tmp_path: Path) -> None:
    """Without a new hash it is refused; with one, it is refused or can be looked at."""
    good = Folder(undisturbed).spec.to_json()
    for what, changed in value_damages({k: v for k, v in good.items() if k != "plan"}):
        full = {**changed, "plan": good["plan"]}
        assert isinstance(outcome(partial(RunSpec.from_json, full, "here"), what), str), what
        (tmp_path / "spec.json").write_text(json.dumps(_again(full)))
        folder = outcome(lambda: Folder(tmp_path), what)
        if isinstance(folder, Folder):
            outcome(partial(info, folder), what)
            if len(folder.spec.units) < 10**6:
                outcome(partial(verify, folder), what)


# parts of a plan that its hash does not cover, and values that they may have
ANY = ("info", "whole_times = False", "levels = None")


def test_any_value_in_a_plan(undisturbed: Path) -> None:
    plan = plan_to_json(Folder(undisturbed).spec.plan)
    for what, changed in value_damages(plan):
        value = _again({**Folder(undisturbed).spec.to_json(), "plan": changed})
        found = outcome(partial(RunSpec.from_json, value, "here"), what)
        assert isinstance(found, str) or what.removeprefix("without ").startswith(ANY)
    assert plan_from_json(plan).hash == plan["hash"]


def test_the_name_of_the_conditions_file_stays_in_the_folder(undisturbed: Path) -> None:
    value = Folder(undisturbed).spec.to_json()
    for name in ("/../../../x", "../x", "", "0" * 63, "0" * 64 + "\n"):
        changed = _again({**value, "conditions": {"file": name, "lines": 20}})
        assert isinstance(outcome(partial(RunSpec.from_json, changed, "here")), str)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_resume_mends_a_record_that_is_no_json(text: bytes, run: Path, cli: Cli) -> None:
    (run / RECORD).write_bytes(text)
    assert [s.unit for s in quick_check(Folder(run)) if s.problem] == [3]
    assert cli("info", run) == 0 and "unit 3 corrupt" in cli.out
    assert cli("verify", run) == 4 and "unit 3 is bad" in cli.out
    assert cli("resume", run) == 0, cli.err
    assert cli("verify", run) == 0


def test_no_damaged_record_is_taken(run: Path) -> None:
    file = run / RECORD
    good, value = file.read_bytes(), json.loads(file.read_bytes())
    folder = Folder(run)
    for bad in bytes_damages(good, 2, 1500):
        file.write_bytes(bad)
        found = outcome(lambda: read_record(file, 3), repr(bad))
        assert isinstance(found, str) or not intact(found) or found == value, bad
        status = next(s for s in quick_check(folder) if s.unit == 3)
        assert status.problem or json.loads(bad) == value


def test_any_value_in_a_record_with_a_new_checksum(run: Path) -> None:
    """What a record claims is compared with the spec and the files, and allocates nothing."""
    file = run / RECORD
    value = {k: v for k, v in json.loads(file.read_bytes()).items() if k != "checksum"}
    folder, refused = Folder(run), 0
    for what, changed in value_damages(value):
        file.write_text(json.dumps(with_checksum(changed)) + "\n")
        with within(20):
            bad = dict(verify(folder).bad)
            list(quick_check(folder))
        refused += 3 in bad
        # times and other notes of the worker may say anything
        known = ("unit", "first", "stop", "seed", "shape", "dtype", "labels", "pixels", "files")
        assert 3 in bad or not what.removeprefix("without ").startswith(known), what
    assert refused > 100


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/passwd", "/dev/zero", "shards/../../x"])
def test_a_record_names_only_files_of_its_dataset(name: str, run: Path) -> None:
    file = run / RECORD
    shutil.copy(run / SHARD, run.parent / "outside.npy")
    value = json.loads(file.read_bytes())
    value["files"][0]["name"] = name
    file.write_text(json.dumps(with_checksum(value)) + "\n")
    with within(10):
        assert "no list of its files" in verify(Folder(run)).bad[3]
        assert 3 in remove_damaged_records(Folder(run))


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "folder"])
@pytest.mark.parametrize("name", [SHARD, RECORD, "spec.json", "verify.json", MANIFEST])
def test_what_is_no_regular_file_is_not_read(name: str, target: str, run: Path) -> None:
    """A link to an endless device, or a pipe without a writer, in the place of a file."""
    (run / name).unlink(missing_ok=True)
    if target == "pipe":
        os.mkfifo(run / name)
    elif target == "folder":
        (run / name).mkdir()
    else:
        (run / name).symlink_to(target)

    def look() -> Any:
        folder = Folder(run)
        list(quick_check(folder))
        has_manifest(folder)
        return verify(folder).bad

    found = outcome(look, seconds=20)
    if name in (SHARD, RECORD):
        assert 3 in found
    if name == "spec.json":
        assert isinstance(found, str)


def test_logs_are_read_as_far_as_they_can_be(run: Path, cli: Cli) -> None:
    unit = {"event": "unit", "unix": 4e9, "images_per_second": 2.5, "queue": 1, "resident_mib": 9}
    lines = [
        b"",
        b"text",
        b"[1]",
        b"1",
        b'{"event": "unit"}',
        b'{"event": 1, "unix": 1}',
        b'{"event": "unit", "unix": "now"}',
        b'{"event": "unit", "unix": true}',
        b'{"event": "unit", "unix": NaN}',
        b'{"event": "unit", "unix": 1e400}',
        b'{"event": "unit", "unix": 4e9, "images_per_second": "fast"}',
        b'{"event": "unit", "unix": 4e9, "queue": []}',
        b'{"event": "unit", "unix": 4e9, "resident_mib": 1e300}',
        b"\xff\xfe",
        b"[" * 2000,
        json.dumps(unit).encode(),
        b'{"event": "unit", "un',  # being written
    ]
    (run / "log" / "damaged.jsonl").write_bytes(b"\n".join(lines))
    (run / "log" / "empty.jsonl").touch()
    os.mkfifo(run / "log" / "pipe.jsonl")
    found = info(Folder(run), now=4e9)
    assert found.unreadable == len(lines) - 3 + 1
    assert found.workers["damaged"]["images_per_second"] == 2.5
    assert cli("info", run) == 0 and "15 lines of log/ could not be read" in cli.out


def test_a_log_of_anything(run: Path) -> None:
    unit = {"event": "unit", "unix": 4e9, "images_per_second": 2.5, "queue": 1, "resident_mib": 9}
    file = run / "log" / "x.jsonl"
    for _, event in value_damages(unit):
        file.write_text(json.dumps(event) + "\n")
        info(Folder(run), now=4e9)
    for bad in bytes_damages(json.dumps(unit).encode() + b"\n", 3, 500):
        file.write_bytes(bad)
        info(Folder(run), now=4e9)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_findings_failures_and_manifests_of_anything(text: bytes, run: Path, cli: Cli) -> None:
    for name in ("verify.json", MANIFEST, "failed/000000003.json"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(text)
    (run / RECORD).unlink()
    assert not has_manifest(Folder(run))
    assert cli("info", run) == 0 and "unit 3 failed" in cli.out
    assert cli("resume", run, "--retry-failed") == 0, cli.err
    assert cli("verify", run) == 0 and has_manifest(Folder(run))


def test_findings_that_name_anything(run: Path) -> None:
    for unit in ("-1", "9" * 5000, "x", "\u0664", "3"):
        (run / "verify.json").write_text(json.dumps({"bad": {unit: "x"}}))
        remove_damaged_records(Folder(run))
    assert len(Folder(run).done()) == UNITS


@pytest.fixture(scope="module")
def model() -> Any:
    return Job.plan("fashion-mnist", ids=(0, 1), unit=2, steps=1, threads=1).model


@pytest.mark.parametrize("text", [v for k, v in HOSTILE.items() if k != "a number"])
def test_lines_of_conditions(text: bytes, model: Any, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(text.replace(b"\n", b"") + b"\nBag\n")
    found = outcome(lambda: Conditions.of(model, ids=(0, 1), file=tmp_path / "c.txt"))
    assert isinstance(found, str)


def test_damaged_conditions(model: Any, tmp_path: Path) -> None:
    good = b'Bag\n{"class": 3}\n"Coat"\n7\n' * 3
    for bad in bytes_damages(good, 4, 1000):
        (tmp_path / "c.txt").write_bytes(bad)
        outcome(lambda: Conditions.of(model, ids=(0, 11), file=tmp_path / "c.txt"), repr(bad))


def test_a_line_that_is_too_long(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdiff.jobs.conditions._CHUNK", 1000)
    monkeypatch.setattr("fastdiff.jobs.conditions._LONGEST", 1 << 20)
    file = tmp_path / "c.txt"
    for text, fine in (
        (b"1\n" * 2000, True),
        (b" " * ((1 << 20) - 2) + b"1\n", True),
        (b"1\n" + b" " * (1 << 20) + b"1\n", False),
        (b"1" * (1 << 20) + b"1", False),
    ):
        file.write_bytes(text)
        ids = (0, len(text.splitlines()) - 1)
        found = outcome(partial(Conditions.of, model, ids=ids, file=file))
        assert isinstance(found, Conditions) if fine else "expected lines of at most 1 MiB" in found


def test_lists_of_classes(model: Any) -> None:
    draw = random.Random(0)
    parts = ["Bag", "7", ",", '"', "\n", "\r", "\0", "\\", " ", "\ufeff", "\x85", "é", "9" * 5000]
    texts = ["".join(draw.choices(parts, k=draw.randrange(1, 8))) for _ in range(3000)]
    texts += ['"' + "x" * 200_000 + '"', '"a\nb"', "Bag\rCoat", "\n"]
    for text in texts:
        outcome(partial(Conditions.of, model, ids=(0, 1), classes=text), repr(text)[:80])


@pytest.mark.parametrize(
    "value", [1e300, [1e300, 1.0], 2**63, [[1], [2, 3]], "x", None, {"a": 1}, [], [[[[]]]]]
)
def test_arguments_that_no_tensor_holds(value: Any) -> None:
    from fastdiff.jobs.models.conditioning import Arguments, InvalidEntry

    with pytest.raises(InvalidEntry, match="expected finite numbers"):
        Arguments(lambda x, t, a: x).parse({"a": value})


def test_a_record_that_claims_a_huge_shape_allocates_nothing(run: Path) -> None:
    file = run / RECORD
    value = json.loads(file.read_bytes())
    value["shape"][1] = 10**9
    file.write_text(json.dumps(with_checksum(value)) + "\n")
    assert "in files that cannot hold them" in verify(Folder(run)).bad[3]


def test_a_run_of_endless_units_is_not_listed(undisturbed: Path, tmp_path: Path) -> None:
    value = _again({**Folder(undisturbed).spec.to_json(), "ids": [0, 2**56 - 1], "unit": 1})
    (tmp_path / "spec.json").write_text(json.dumps(value))
    folder = Folder(tmp_path)
    assert info(folder).missing == 2**56
    assert "expected at most 100000000 missing units" in outcome(lambda: verify(folder))


CALLS: dict[str, Callable[[Path], Any]] = {
    "info": lambda path: info(Folder(path)),
    "verify": lambda path: verify(Folder(path)),
    "export": lambda path: export(path, "npz", path.parent / "out.npz", overwrite=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_damage_anywhere_in_a_dataset(call: Callable[[Path], Any], run: Path) -> None:
    """One file of the folder at a time, any of them, damaged at random."""
    good = np.load(run / SHARD).tobytes()
    for number, path in enumerate(sorted(p for p in run.rglob("*") if p.is_file())):
        before = path.read_bytes()
        for bad in bytes_damages(before, number, 15):
            path.write_bytes(bad)
            outcome(lambda: call(run), f"{path}: {bad[:80]!r}")
        path.write_bytes(before)
    assert np.load(run / SHARD).tobytes() == good and not verify(Folder(run)).bad
