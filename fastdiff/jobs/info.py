"""The progress of a run, from the names and sizes of its files and the workers' logs.

It can be read on any machine that sees the folder; no samples are read.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..outside import NotJSON, open_regular, parse_json
from .folder import Folder
from .quick_check import quick_check

ACTIVE = 300.0  # seconds without an event after which a worker no longer counts as active
TAIL = 4096  # bytes that are read from the end of a log
NUMBERS = ("unix", "images_per_second", "queue", "resident_mib")  # of an event


@dataclass
class Info:
    """The progress of a run.

    Attributes:
        units: number of units of the run.
        samples: number of samples of the run.
        done: units that are done.
        images: samples in them.
        bytes: of their files.
        missing: units without a record.
        failed: units whose samples were not finite, and why.
        corrupt: units with a damaged record, or with files that are missing or have another size.
        workers: those with an event in the last five minutes, with their latest speed, queue and
            memory.
        images_per_second: of these workers together.
        eta_s: remaining seconds at that speed; None when the run is complete or no worker has a
            speed yet.
        unreadable: lines in the read ends of the logs that are no events.
    """

    units: int
    samples: int
    done: int = 0
    images: int = 0
    bytes: int = 0
    missing: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    corrupt: dict[int, str] = field(default_factory=dict)
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    images_per_second: float = 0.0
    eta_s: int | None = None
    unreadable: int = 0

    @property
    def complete(self) -> bool:
        return self.done == self.units


def info(folder: Folder, now: float | None = None) -> Info:
    """Returns the progress of the run in a folder. now: seconds since the epoch, for tests."""
    units = folder.spec.units
    found = Info(len(units), units.samples)
    for status in quick_check(folder):
        if status.problem:
            found.corrupt[status.unit] = status.problem
            continue
        found.done += 1
        found.images += len(units.ids(status.unit))
        found.bytes += status.bytes
    found.failed = {unit: str(what.get("what")) for unit, what in folder.failed().items()}
    found.missing = (
        found.units
        - found.done
        - len(found.failed)
        - sum(unit in units.numbers for unit in found.corrupt)
    )
    _workers(folder.path / "log", found, time.time() if now is None else now)
    return found


def _workers(logs: Path, found: Info, now: float) -> None:
    try:
        entries = [e for e in os.scandir(logs) if e.name.endswith(".jsonl")]
    except FileNotFoundError:
        return
    for entry in entries:
        events, unreadable = _last_events(Path(entry.path))
        found.unreadable += unreadable
        latest = events[-1] if events else None
        if latest is None or latest.get("event") == "stop" or now - latest["unix"] > ACTIVE:
            continue
        unit: dict[str, Any] = next((e for e in reversed(events) if e.get("event") == "unit"), {})
        found.workers[entry.name.removesuffix(".jsonl")] = {
            "images_per_second": unit.get("images_per_second") or 0.0,
            "queue": unit.get("queue"),
            "resident_mib": unit.get("resident_mib"),
            "silent_s": round(now - latest["unix"], 1),
        }
    found.images_per_second = round(sum(w["images_per_second"] for w in found.workers.values()), 2)
    if found.images_per_second > 0 and not found.complete:
        found.eta_s = round((found.samples - found.images) / found.images_per_second)


def _last_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns (the events in the last `TAIL` bytes of a log, the number of other lines there)."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL))
            lines = file.read(TAIL).split(b"\n")
    except (OSError, ValueError):
        return [], 1
    if size > TAIL:
        del lines[0]  # cut by the seek
    del lines[-1:]  # empty, or being written
    events = [_event(line) for line in lines if line]
    return [e for e in events if e is not None], events.count(None)


def _event(line: bytes) -> dict[str, Any] | None:
    """Returns the event of a line of a log; None for a line that is no event."""
    try:
        event = parse_json(line)
    except NotJSON:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    numbers = {k: event[k] for k in NUMBERS if event.get(k) is not None}
    plain = all(type(v) in (int, float) and abs(v) < 1e15 for v in numbers.values())
    return event if plain and "unix" in numbers else None
