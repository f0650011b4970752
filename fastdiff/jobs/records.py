"""The records of a dataset: one JSON file per unit, units/00012/000012345.json.

A unit is done when its record exists. There may be millions of records: they are listed folder by
folder and read one by one, never all at once. A record ends with a checksum of everything before
it, so that damage is found without interpreting its fields.

A unit has one name. A file under another one (units/000012/…, or a number with more digits) is no
record: it is not counted, and `stray_names` lists it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ..outside import NotJSON, parse_json, read_bytes, shown

UNITS, TRAJECTORIES = "units", "trajectories"
FOLDER = re.compile(r"[0-9]{5}|[1-9][0-9]{5,}")
FILE = re.compile(r"([0-9]{9}|[1-9][0-9]{9,})\.json")
HASH = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[\w.-][\w./-]*", re.ASCII)  # of a data file, relative to the dataset's folder
CHECKSUM, FILES = b', "checksum": "', b', "files": '
READ = 1 << 16  # bytes per read
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
LARGEST = 1 << 28  # bytes of a record
# deflate makes at most 1,032 bytes of one; a sample's file has fewer bytes of headers
INFLATED, HEADERS = 1032, 1 << 20


def record_name(unit: int) -> str:
    """units/00012/000012345.json: at most 1,000 files in a folder."""
    return f"{UNITS}/{unit // 1000:05d}/{unit:09d}.json"


def unit_files(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yields (unit, path of its record) of all units that have one, in order."""
    for unit in unit_numbers(folder):
        yield unit, folder / record_name(unit)


def unit_numbers(folder: Path) -> Iterator[int]:
    """Yields the units that have a record, in order, each once, and ignores all other names.

    Only names are read: 10⁵ units take a fraction of a second.
    """
    for parent in _parents(folder):
        with os.scandir(folder / UNITS / f"{parent:05d}") as entries:
            found = sorted(int(match[1]) for e in entries if (match := FILE.fullmatch(e.name)))
        yield from (unit for unit in found if unit // 1000 == parent)


def stray_names(folder: Path) -> Iterator[str]:
    """Yields the names below units/ that are no record's, as units/000000 or units/00000/1.json."""
    top = folder / UNITS
    if not top.is_dir():
        return
    parents = {f"{parent:05d}" for parent in _parents(folder)}
    for entry in sorted(os.scandir(top), key=lambda e: e.name):
        if entry.name not in parents:
            yield f"{UNITS}/{entry.name}"
            continue
        for file in sorted(os.listdir(entry.path)):
            match = FILE.fullmatch(file)
            if not (match and int(match[1]) // 1000 == int(entry.name)):
                yield f"{UNITS}/{entry.name}/{file}"


def failed_unit(name: str) -> int | None:
    """Returns the unit that a file of failed/ is about, None for other files."""
    match = FILE.fullmatch(name)
    return int(match[1]) if match else None


def _parents(folder: Path) -> list[int]:
    """The numbers of the folders of records."""
    try:
        with os.scandir(folder / UNITS) as entries:
            return sorted(int(e.name) for e in entries if FOLDER.fullmatch(e.name) and e.is_dir())
    except FileNotFoundError:
        return []


def read_record(path: Path, unit: int) -> dict[str, Any]:
    """Returns the record of a unit.

    Raises FileNotFoundError, or ValueError in one sentence when it is damaged.
    """
    try:
        record = parse_json(read_bytes(path, LARGEST), limit=LARGEST)
        problem = _problem(record, unit)
    except FileNotFoundError:
        raise
    except NotJSON:
        record, problem = None, "no JSON object"
    except (ValueError, OSError) as error:
        record, problem = None, shown(error)
    if problem:
        raise ValueError(
            f"fastdiff.jobs: expected the record of unit {unit} in {shown(path)}, got {problem}. "
            f"Run `fastdiff resume {shown(path.parents[2])}`."
        )
    assert isinstance(record, dict)
    return record


def read_files(path: str, unit: int, ids: range) -> list[dict[str, Any]]:
    """Returns the list of files in the record of a unit that holds these ids.

    Only the checksum, the ids and this list are read, which is faster than `read_record`. Raises as
    `read_record` does.
    """
    body, _, checksum = _content(path).removesuffix(b"\n").rpartition(CHECKSUM)
    whole = checksum == b'%s"}' % hashlib.sha256(body + b"}").hexdigest().encode()
    if whole and body.startswith(
        b'{"unit": %d, "first": %d, "stop": %d, ' % (unit, ids.start, ids.stop)
    ):
        try:
            files = parse_json(body[body.rfind(FILES) + len(FILES) :])
            if _are_files(files):
                return files
        except NotJSON:
            pass  # the list is not at the end
    record = read_record(Path(path), unit)
    if not intact(record):
        raise ValueError(f"{shown(path)} is not as it was written")
    if (record["first"], record["stop"]) != (ids.start, ids.stop):
        raise ValueError(f"{shown(path)} has other ids")
    return record["files"]


def sample_files(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the files of a record that hold its samples: all but those of trajectories."""
    return [file for file in record["files"] if not _is_trajectory(file)]


def trajectory_files(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the files of a record that hold trajectories (fastdiff.jobs.trajectory)."""
    return [file for file in record["files"] if _is_trajectory(file)]


def _is_trajectory(file: Mapping[str, Any]) -> bool:
    return file["name"].split("/")[0] == TRAJECTORIES


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with the checksum of the other fields, as JSON in this order, at its end."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return {**rest, "checksum": hashlib.sha256(json.dumps(rest).encode()).hexdigest()}


def intact(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is as it was written."""
    return with_checksum(record)["checksum"] == record.get("checksum")


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of all finished units, in order, one at a time.

    A record that is removed while the folder is read is skipped. Raises ValueError at a damaged
    one; to continue after it, use `unit_files` and `read_record`.
    """
    for unit, path in unit_files(folder):
        try:
            record = read_record(path, unit)
        except FileNotFoundError:
            continue
        yield record


def _content(path: str) -> bytes:
    """Returns the content of a small file with as few system calls as possible."""
    file = os.open(path, FLAGS)
    try:
        parts = [os.read(file, READ)]
        while len(parts[-1]) == READ and len(parts) * READ <= LARGEST:
            parts.append(os.read(file, READ))
    except BlockingIOError:  # a pipe without a writer
        return b""
    finally:
        os.close(file)
    return b"".join(parts)


def _problem(record: Any, unit: int) -> str:
    """Returns what is wrong with a record, in words; empty when nothing is."""
    if not isinstance(record, dict):
        return "no JSON object"
    keys = ("unit", "first", "stop", "seed")
    if any(type(record.get(key)) is not int for key in keys):
        return "no whole numbers as " + ", ".join(
            key for key in keys if type(record.get(key)) is not int
        )
    count = record["stop"] - record["first"]
    shape, labels, files = record.get("shape"), record.get("labels"), record.get("files")
    if record["unit"] != unit:
        return f"the one of unit {record['unit']}"
    if not (
        _are_integers(shape)
        and shape
        and shape[0] == count > 0
        and min(shape) > 0
        and record["first"] >= 0
    ):
        return f"shape {shape} for the ids {record['first']} to {record['stop'] - 1}"
    if record.get("dtype") not in ("uint8", "float32"):
        return f"dtype {record.get('dtype')!r}"
    if "labels" not in record:
        return "no labels, not even null"
    if labels is not None and not (_are_integers(labels) and len(labels) == count):
        return f"labels other than {count} whole numbers"
    if not (isinstance(record.get("pixels"), str) and HASH.fullmatch(record["pixels"])):
        return "no hash of its pixels"
    if files is None or not _are_files(files):
        return "no list of its files"
    # a record can claim any shape, and the samples are allocated by it
    claimed = math.prod(shape) * (1 if record["dtype"] == "uint8" else 4)
    if claimed > INFLATED * sum(f["bytes"] for f in files) + HEADERS:
        return f"{claimed} bytes of samples in files that cannot hold them"
    return ""


def _are_integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int for v in values)


def _are_files(files: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(files, list) and bool(files) and all(_is_file(f) for f in files)


def _is_file(entry: Any) -> bool:
    """Whether an entry names a file inside the dataset, its size and its hash."""
    return (
        isinstance(entry, dict)
        and isinstance(name := entry.get("name"), str)
        and NAME.fullmatch(name) is not None
        and ".." not in name.split("/")
        and type(entry.get("bytes")) is int
        and entry["bytes"] >= 0
        and isinstance(entry.get("sha256"), str)
        and HASH.fullmatch(entry["sha256"]) is not None
    )
