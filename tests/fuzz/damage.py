"""Fuzzes datasets: files that are flipped, cut, swapped, renamed, doubled, replaced or deleted.

A case copies a finished dataset of a tiny model, damages one or two of its files, and runs the
commands. `info` and `export` answer or refuse in a sentence. `verify` must fail and name the file
or its unit, unless the damage is harmless, which is proven: the digest is the original one, and

- the file is none of those that `verify` covers: logs, tmp/, grid.png, manifest.jsonl and
  verify.json (the last three are made again from the records), or
- its content says the same (JSON with another white space, a hash in another case, a record with a
  fitting checksum and another time or a key that is not read), or
- the file is a copy under a name that belongs to no part of a dataset.

`resume` then succeeds and `verify` gives the original digest, or it refuses in a sentence.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import folders
from campaign import SENTENCE, Campaign, Report, described, kind_of

from fastdiff.cli import main
from fastdiff.jobs import Folder
from fastdiff.jobs.records import with_checksum

CONDITIONS = Path("conditions.txt")
COMMON = ("--ids", "2-13", "--unit", "4", "--steps", "2", "--threads", "1")
DATASETS = {
    "npy": ("pictures", "npy"),
    "npz": ("pictures", "npz"),
    "png": ("pictures", "png"),
    "webdataset": ("pictures", "webdataset"),
    "safetensors": ("classes", "safetensors"),
    "conditions": ("pictures", "npy", "--conditions", CONDITIONS.name),
    "vectors": ("vectors", "npy"),
    "trajectories": ("pictures", "npy", "--solver", "ddpm", "--save", "trajectory"),
}
RUNS = Path("runs")
WAYS = (
    "flip", "flip", "flip", "truncate", "empty", "append", "splice", "swap", "rename", "double",
    "delete", "delete", "replace", "forge", "edit", "folder",
)  # fmt: skip
UNCOVERED = ("log", "tmp", "grid.png", "manifest.jsonl", "verify.json")
DIGESTS = Path("digests.json")


def command(*arguments: Any) -> tuple[int, str, str]:
    """Runs a command in this process and returns (status, output, errors)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    return status, out.getvalue(), err.getvalue()


def prepare() -> None:
    """Writes the models and the datasets; notes their digests."""
    folders.prepare()
    digests = {}
    CONDITIONS.write_text("".join(f"{i % 2}\n" for i in range(12)))
    for name, (model, fmt, *more) in DATASETS.items():
        run = RUNS / name
        arguments = ("--out", run, "--model", folders.GOOD / model, "--format", fmt, *more)
        status, _, err = command("sample", *arguments, *COMMON)
        assert status == 0, err
        without_times(run)
        status, out, err = command("verify", run, "--json")
        assert status == 0, err
        digests[name] = json.loads(out)["digest"]
    DIGESTS.write_text(json.dumps(digests))


def without_times(run: Path) -> None:
    """Replaces what differs from run to run, so that a case has the same bytes in every one."""
    made = {"worker": "host-1-0123abcd", "seconds": 0.5, "at": "2026-01-01T00:00:00.000+00:00"}
    for path in (run / "units").rglob("*.json"):
        record = json.loads(path.read_text()) | {"made": made | {"unix": 1767225600.0}}
        files = record.pop("files")
        path.write_text(json.dumps(with_checksum(record | {"files": files})) + "\n")
    for path in (run / "log").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [
            {"event": line["event"], "unix": 1767225600.0 + i, "unit": line.get("unit")}
            for i, line in enumerate(lines)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        path.rename(path.with_name("host-1-0123abcd.jsonl"))


def digest_of(name: str) -> str:
    """Returns the digest of a dataset before any damage."""
    return json.loads(DIGESTS.read_text())[name]


def files(run: Path) -> list[Path]:
    """Returns the files of a dataset."""
    return sorted(p for p in run.rglob("*") if p.is_file() or p.is_symlink())


def kind(path: Path, run: Path) -> str:
    """Returns what a file of a dataset is."""
    first = path.relative_to(run).parts[0]
    if first in ("spec.json", "units", "shards", "failed", *UNCOVERED):
        return {"units": "record", "shards": "shard", "spec.json": "spec"}.get(first, first)
    return "conditions" if first.startswith("conditions-") else "shard"


def damage(r: random.Random, run: Path) -> tuple[str, set[str], set[Path]]:
    """Damages a dataset; returns (in words how, the kinds of files, the files)."""
    every = [p for p in files(run) if not p.is_symlink()]  # a second damage follows no link
    groups: dict[str, list[Path]] = {}
    for path in every:
        groups.setdefault(kind(path, run), []).append(path)
    what = r.choice(
        [k for k in groups for _ in range(4 if k in ("record", "shard", "spec") else 1)]
    )
    path = r.choice(groups[what])
    how = r.choice(WAYS)
    touched = set() if what in UNCOVERED else {path}
    content = path.read_bytes()
    if how == "flip":
        path.write_bytes(folders.flipped(r, content) if content else b"x")
    elif how == "truncate":
        path.write_bytes(folders.truncated(r, content) if content else b"x")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "append":
        path.write_bytes(content + r.choice((b"\n", b"\0", b"{}", content)))
    elif how == "splice":
        path.write_bytes(folders.spliced(r, content))
    elif how == "swap":
        other = r.choice(groups[what])
        second = other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(content)
        touched |= set() if what in UNCOVERED else {other}
    elif how == "rename":
        path.rename(path.with_name(r.choice(("x", path.name + ".bak", "000000009" + path.suffix))))
    elif how == "double":
        shutil.copy(path, path.with_name(r.choice(("copy", "000000099" + path.suffix, "7.json"))))
        touched = set()
    elif how == "delete":
        path.unlink()
    elif how == "replace":
        path.unlink()
        kinds = [
            path.mkdir,
            lambda: path.symlink_to("nowhere"),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/dev/null"),
            lambda: path.symlink_to("/dev/zero"),
        ]
        r.choice(kinds)()
    elif how in ("forge", "edit") and path.suffix == ".json":
        path.write_bytes(_edited(r, content, forged=how == "forge" and what == "record"))
    elif how == "folder" and path.parent != run:
        shutil.rmtree(path.parent)
        gone = {p for p in every if p.is_relative_to(path.parent)}
        touched = set() if what in UNCOVERED else gone
    else:
        how = "flip"
        path.write_bytes(folders.flipped(r, content) if content else b"x")
    return f"{what}: {how}", {what}, touched


def _edited(r: random.Random, content: bytes, *, forged: bool) -> bytes:
    """Another value or key in a JSON file; forged: with a checksum that fits."""
    try:
        text = (folders.typed if r.random() < 0.7 else folders.keyed)(r, content)
    except ValueError:  # a damage before has made it no JSON
        return folders.flipped(r, content) if content else b"x"
    if not forged:
        return text
    try:
        return json.dumps(with_checksum(json.loads(text))).encode("utf-8", "surrogatepass")
    except (ValueError, AttributeError):
        return text


def is_told(text: str) -> bool:
    """Returns whether a command's error is a sentence: "fastdiff <command>: fastdiff.…: …".

    Lines after the first are indented differences or advice.
    """
    first = text.splitlines()[0] if text else ""
    words = first.partition(": ")[2]
    return SENTENCE.fullmatch(words) is not None or words.startswith(("expected ", "unit "))


def tried(report: Report, how: str, *arguments: Any) -> tuple[int, str, str] | None:
    """Runs a command; reports exceptions and errors that are no sentences."""
    report.count(f"runs of {arguments[0]}")
    try:
        status, out, err = command(*arguments)
    except Exception as error:
        report.finding(f"{how}: {arguments[0]} raised {described(error)}")
        return None
    told = [
        line for line in err.splitlines() if line and not line.startswith(("sampling", "exporting"))
    ]
    if status in (1, 2, 3) and not is_told("\n".join(told)):
        report.finding(f"{how}: {arguments[0]} says no sentence: {' / '.join(told)[:300]}")
    if status != 0:
        said = told[0].partition(": ")[2] if told else "a dataset that is damaged"
        report.count(f"refused: {arguments[0]} {status}: {kind_of(said[:200])}")
    return status, out, err


def harmless(name: str, run: Path, touched: set[Path]) -> bool:
    """Returns whether the damage is proven to be without effect, see the module's text."""
    good = RUNS / name
    for path in touched:
        before = good / path.relative_to(run)
        if not before.exists():  # another file, which is no part of the dataset
            continue
        if path.is_symlink():
            return False
        try:
            same = path.read_bytes() == before.read_bytes()
            if not same and kind(path, run) == "record":
                same = _said(path) == _said(before)
            if not same and kind(path, run) == "spec":
                same = Folder(run).spec.hash == Folder(good).spec.hash
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if not same:
            return False
    return True


def _said(path: Path) -> dict[str, Any]:
    """Returns what a record says about its samples: not when it was made, nor unknown keys."""
    record = json.loads(path.read_bytes())
    keys = ("unit", "first", "stop", "seed", "labels", "shape", "dtype", "pixels")
    files = [[file[key] for key in ("name", "bytes", "sha256")] for file in record["files"]]
    return {"files": files, **{key: record[key] for key in keys}}


def named(touched: set[Path], run: Path, out: str, err: str) -> bool:
    """Returns whether an answer names one of the damaged files, or its unit."""
    text = out + err
    for path in touched:
        stem = path.stem.partition(".")[0]
        numbers = [int(stem)] if stem.isdecimal() else []
        if str(path.relative_to(run)) in text or path.name in text:
            return True
        if any(f'"{n}"' in text or f" {n}" in text for n in numbers):
            return True
    return any(part in text for part in ("missing", "expected"))


def run(r: random.Random, report: Report) -> None:
    """Executes one case: damages a copy of a dataset, and runs the commands on it."""
    name = r.choice(list(DATASETS))
    run = Path(f"case-{report.case}")
    shutil.copytree(RUNS / name, run)
    try:
        how, kinds, touched = damage(r, run)
        if r.random() < 0.15:
            second = damage(r, run)
            how, kinds, touched = f"{how}, {second[0]}", kinds | second[1], touched | second[2]
        how = f"{name}, {how}"
        if os.environ.get("FUZZ_SHOW"):
            print(how, [str(p) for p in touched])
        report.count(f"damaged {'/'.join(sorted(kinds))}")
        tried(report, how, "info", run)
        _verify(name, how, run, kinds, touched, report)
        if r.random() < 0.25:
            fmt = r.choice(("npz", "npy", "png", "webdataset"))
            tried(report, how, "export", run, "--format", fmt, "--out", f"out-{report.case}")
        if r.random() < 0.6:
            _resume(name, how, run, report)
    finally:
        shutil.rmtree(run, ignore_errors=True)
        for path in Path().glob(f"out-{report.case}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _verify(
    name: str, how: str, run: Path, kinds: set[str], touched: set[Path], report: Report
) -> None:
    is_harmless = harmless(name, run, touched)
    answer = tried(report, how, "verify", run, "--json")
    if answer is None:
        return
    status, out, err = answer
    if status == 0:
        report.count("damages that verify passes, proven harmless")
        if json.loads(out)["digest"] != digest_of(name):
            report.finding(f"{how}: verify passes with another digest")
        if not is_harmless:
            report.finding(f"{how}: verify passes, and the damage is not harmless")
        return
    report.count("damages that verify finds")
    if is_harmless and kinds <= set(UNCOVERED):
        report.finding(
            f"{how}: verify fails for a file that it does not cover: {out[:200]}{err[:200]}"
        )
    if not named(touched, run, out, err):
        report.finding(f"{how}: verify does not name what is wrong: {out[:300]}{err[:300]}")


def _resume(name: str, how: str, run: Path, report: Report) -> None:
    answer = tried(report, how, "resume", run)
    if answer is None:
        return
    if answer[0] != 0:
        return
    report.count("datasets that resume repaired")
    checked = tried(report, how, "verify", run, "--json")
    if checked is None:
        return
    if checked[0] != 0:
        # what no unit's file is, resume leaves: it must be named
        text = json.loads(checked[1]) if checked[1].startswith("{") else {}
        if text.get("bad") or text.get("missing") or text.get("failed") or not text:
            report.finding(f"{how}: after resume verify says {checked[1][:300]}{checked[2][:300]}")
    elif json.loads(checked[1])["digest"] != digest_of(name):
        report.finding(f"{how}: after resume the digest is another one")


CAMPAIGN = Campaign(
    run, cases=6_000, short=24, batch=60, seconds=60.0, memory=4 << 30, prepare=prepare
)
