"""What is in a dataset, checked: sizes in passing, hashes in full, pixels by making them again.

The digest is SHA-256 over a line `first stop pixels-hash` per unit, in order: it names the samples,
whatever the format, the machine's clock or the history of the run. All of it is worked out from the
files, never from a manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..backend import hardware
from .folder import Folder
from .formats import FORMATS, pixels_sha256
from .job import Job
from .machine import settled
from .quick_check import glance
from .records import intact, read_record, records, sealed, unit_files

FOUND = "verify.json"  # what the latest look found wrong, for whoever resumes
MANIFEST = "manifest.jsonl"
OTHER = "made again, it has other pixels"
OWN = {
    "spec.json",
    "units",
    "shards",
    "failed",
    "log",
    "tmp",
    FOUND,
    MANIFEST,
    "grid.png",
    "lost+found",
}


@dataclass
class Check:
    """What a dataset holds.

    Attributes:
        spec: its hash. units, done, images: units of the run, those that are there and whole,
            samples in them.
        missing: units without a record. failed: units that were given up, and why. bad: units that
            are not as they were written, and why. foreign: names that are no part of a dataset.
            recomputed: units made again and compared.
        digest: of the units that are whole.
    """

    spec: str
    units: int
    done: int = 0
    images: int = 0
    missing: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    recomputed: list[int] = field(default_factory=list)
    digest: str = ""

    @property
    def fine(self) -> bool:
        return not (self.missing or self.failed or self.bad)


class Digest:
    """The digest of units given in order."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256(b"fastdiff dataset 1\n")

    def add(self, record: dict[str, Any]) -> None:
        self._sum.update(f"{record['first']} {record['stop']} {record['pixels']}\n".encode())

    @property
    def hex(self) -> str:
        return self._sum.hexdigest()


def verify(folder: Folder, recompute: int = 0, threads: int | None = None) -> Check:
    """Reads and hashes every file of a dataset and makes `recompute` of its units, taken at random,
    again.

    What is wrong is written to verify.json, where that can be, and mended by the next `resume`.
    Raises SpecMismatch for `recompute` on another machine.
    """
    spec, digest = folder.spec, Digest()
    check = Check(spec.hash, len(spec.units))
    whole, there = [], set()
    for (unit, path), (wrong, record) in _each(
        folder, unit_files(folder.path), threads or hardware.usable_cpus()
    ):
        there.add(unit)
        if wrong:
            check.bad[unit] = wrong
            continue
        assert record is not None
        if unit not in spec.units.numbers:
            check.bad[unit] = f"{path} belongs to no unit of the run"
            continue
        digest.add(record)
        check.done += 1
        check.images += record["stop"] - record["first"]
        whole.append(unit)
    check.failed = {unit: str(what.get("what")) for unit, what in folder.failed().items()}
    check.missing = [u for u in spec.units.numbers if u not in there and u not in check.failed]
    check.foreign = foreign(folder)
    check.digest = digest.hex
    if recompute and whole:
        job = Job.open(spec, conditions=folder.conditions, where=str(folder.path))
        check.recomputed = sorted(random.SystemRandom().sample(whole, min(recompute, len(whole))))
        with settled(spec.threads):
            for unit in check.recomputed:
                pixels = pixels_sha256(job.draw(unit).array.cpu().numpy())
                if pixels != read_record(folder.record_path(unit), unit)["pixels"]:
                    check.bad[unit] = OTHER
    _note(folder, check.bad)
    return check


def _each(
    folder: Folder, units: Iterable[tuple[int, Path]], threads: int
) -> Iterator[tuple[tuple[int, Path], tuple[str, dict[str, Any] | None]]]:
    units = iter(units)
    with ThreadPoolExecutor(threads) as pool:
        while part := list(islice(units, 512)):  # a pool takes in all it is given at once
            yield from zip(part, pool.map(lambda item: examine(folder, *item), part), strict=True)


def examine(folder: Folder, unit: int, path: Path) -> tuple[str, dict[str, Any] | None]:
    """(what is wrong with a unit, in words, or nothing; its record)."""
    try:
        record = read_record(path, unit)
        if not intact(record):
            return f"{path} is not as it was written", record
        ids = folder.spec.units.ids(unit) if unit in folder.spec.units.numbers else None
        if ids is not None and (record["first"], record["stop"]) != (ids.start, ids.stop):
            return f"{path} has other ids", record
        for file in record["files"]:
            name = folder.path / file["name"]
            size = name.stat().st_size
            if size != file["bytes"]:
                return f"{name} has {size} bytes, not {file['bytes']}", record
            with open(name, "rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file["sha256"]:
                    return f"{name} is not as it was written", record
        if pixels_sha256(FORMATS[folder.spec.format].read(folder.path, record)) != record["pixels"]:
            return f"{path} has the hash of other pixels", record
    except FileNotFoundError as error:
        return f"{error.filename or path} is missing", None
    except (OSError, ValueError) as error:
        return str(error), None
    return "", record


def heal(folder: Folder) -> list[int]:
    """Takes away records that are damaged, those of units whose files are missing or of another
    size, and of those that verify found wrong and that still are.

    Their samples are then made again: nothing that is whole is touched. Files are not read, so that
        10⁵ units take seconds.
    """
    numbers = folder.spec.units.numbers
    gone = [seen.unit for seen in glance(folder) if seen.wrong and seen.unit in numbers]
    named = _named(folder.path / FOUND)
    for unit, what in named.items():
        path = folder.record_path(unit)
        if path.exists() and (
            what == OTHER or unit not in numbers or examine(folder, unit, path)[0]
        ):
            gone.append(unit)
    for unit in gone:
        folder.forget(unit)
    if named:
        (folder.path / FOUND).unlink(missing_ok=True)
    return gone


def _named(path: Path) -> dict[int, str]:
    """The units that verify found wrong, and why."""
    try:
        return {
            int(unit): what
            for unit, what in json.loads(path.read_text(encoding="utf-8"))["bad"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none, or a file that somebody damaged


def finish(folder: Folder) -> str:
    """Writes the manifest of a complete dataset and returns the digest."""
    digest, count, images = Digest(), 0, 0

    def write(file: BinaryIO) -> None:
        nonlocal count, images
        lines = hashlib.sha256()
        for record in records(folder.path):
            if record["unit"] not in folder.spec.units.numbers:
                continue
            digest.add(record)
            count, images = count + 1, images + record["stop"] - record["first"]
            kept = {
                key: record[key] for key in ("unit", "first", "stop", "seed", "pixels", "files")
            }
            line = json.dumps(kept).encode() + b"\n"
            lines.update(line)
            file.write(line)
        total = {"spec": folder.spec.hash, "units": count, "images": images, "digest": digest.hex}
        file.write(json.dumps(sealed({**total, "lines": lines.hexdigest()})).encode() + b"\n")

    folder.write(MANIFEST, write)
    return digest.hex


def listed(folder: Folder) -> bool:
    """Whether there is a manifest of all units, as it was written."""
    lines, line = hashlib.sha256(), b""
    try:
        with open(folder.path / MANIFEST, "rb") as file:
            for following in file:
                lines.update(line)
                line = following
        last = json.loads(line)
        said = last["spec"], last["units"], last["lines"]
        return intact(last) and said == (
            folder.spec.hash,
            len(folder.spec.units),
            lines.hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def foreign(folder: Folder) -> list[str]:
    """Names in the folder that are no part of a dataset."""
    own = OWN | ({folder.conditions.name} if folder.conditions else set())
    names = (e.name for e in os.scandir(folder.path))
    png = folder.spec.format == "png"
    return sorted(
        n
        for n in names
        if n not in own and not n.startswith(".nfs") and not (png and n.isdecimal())
    )


def _note(folder: Folder, bad: dict[int, str]) -> None:
    path = folder.path / FOUND
    try:
        if bad:
            folder.write(
                FOUND,
                (
                    json.dumps({"bad": {str(u): w for u, w in bad.items()}}, indent=1) + "\n"
                ).encode(),
            )
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass  # a look at a read-only folder says what it says
