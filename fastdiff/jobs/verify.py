"""Checks a dataset: the hashes of all files, and on request the samples, by recomputing them.

The digest (fastdiff.jobs.manifest) is computed from the files, never from a manifest.
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
from typing import Any

from ..backend import hardware
from ..outside import open_regular, parse_json, read_bytes
from . import trajectory
from .extend import EARLIER
from .folder import SPEC, Folder
from .formats import FORMATS, pixels_sha256
from .job import Job, check_trust
from .labels import SpecLabels
from .machine import repeatable
from .manifest import MANIFEST, Digest
from .quick_check import quick_check
from .records import (
    TRAJECTORIES,
    UNITS,
    intact,
    read_record,
    stray_names,
    trajectory_files,
    unit_files,
)
from .rollout_check import RolloutCheck
from .spec import RunSpec, SpecMismatch

FINDINGS = "verify.json"  # the damaged units that the latest check found, for the next `resume`
MISSING = 10**8  # units that are listed one by one
OTHER_PIXELS = "made again, it has other pixels"
OTHER_LABELS = "made again, it has other labels"
OTHER_TRAJECTORY = "made again, it has another trajectory"
ROLLOUT = "rollout: "  # begins what is wrong with a trajectory whose file is as it was written
OTHER_KIND = "has samples of another shape or type than the units before"
# what reading the files of a unit alone does not show
ALONE = (OTHER_PIXELS, OTHER_LABELS, OTHER_TRAJECTORY, OTHER_KIND)
# names in a dataset's top folder, other than the conditions file and the data files of a format
OWN = {
    SPEC,
    UNITS,
    "shards",
    "failed",
    EARLIER,
    "log",
    "tmp",
    FINDINGS,
    MANIFEST,
    "grid.png",
    "lost+found",
}


@dataclass
class DatasetCheck:
    """The result of a check of a dataset.

    Attributes:
        spec: hash of the run spec.
        units: units of the run.
        done: units that are present and intact.
        images: samples in them.
        missing: units without a record.
        failed: units whose samples were not finite, and why.
        bad: damaged units, and why.
        foreign: names in the folder that are no part of a dataset.
        conditions: what is wrong with the conditions file; empty if nothing is.
        recomputed: units that were made again and compared.
        transitions: of trajectories that were executed again and compared.
        unproven: why the steps of trajectories were not executed again; "" where they were, or
            where the check was not asked for.
        digest: of the intact units.
    """

    spec: str
    units: int
    done: int = 0
    images: int = 0
    missing: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    conditions: str = ""
    recomputed: list[int] = field(default_factory=list)
    transitions: int = 0
    unproven: str = ""
    digest: str = ""

    @property
    def fine(self) -> bool:
        return not (self.missing or self.failed or self.bad or self.conditions)


def verify(
    folder: Folder,
    recompute: int = 0,
    threads: int | None = None,
    *,
    trust: bool = False,
    rollout: bool = False,
) -> DatasetCheck:
    """Reads and hashes every file of a dataset, and recomputes some units.

    Damaged units are written to verify.json, where the folder permits it, and made again by the
    next `resume`.

    Args:
        folder: the dataset.
        recompute: number of units, chosen at random, to recompute and compare.
        threads: that read files; default the CPUs that this process may use.
        trust: whether `recompute` and `rollout` may run the code that the spec names, see
            `Job.open`.
        rollout: whether to check the trajectories too (fastdiff.jobs.rollout_check). Where the
            model is of code that is not trusted or cannot be opened, `unproven` says so, and only
            what needs no network is checked.

    Raises:
        SpecMismatch: for `recompute` and `rollout` on another kind of machine.
        ValueError: for `recompute` of a model of code that is not trusted, and for `rollout` of a
            run without trajectories, before anything is read.
    """
    spec, digest = folder.spec, Digest()
    if rollout:
        trajectory.check_saves(spec, folder.path)
    if recompute:
        check_trust(spec, trust, str(folder.path))
    labels = SpecLabels(spec, folder.conditions)
    check = DatasetCheck(spec.hash, len(spec.units), conditions=labels.problem)
    good, present = [], set()
    kind: tuple[Any, ...] | None = None
    for (unit, path), (problem, record) in _check_units(
        folder, unit_files(folder.path), threads or hardware.usable_cpus()
    ):
        present.add(unit)
        if problem:
            check.bad[unit] = problem
            continue
        assert record is not None
        if unit not in spec.units.numbers:
            check.bad[unit] = f"{path} belongs to no unit of the run"
            continue
        problem = _disagreement(spec, labels, record, kind)
        if problem:
            check.bad[unit] = f"{path} {problem}"
            continue
        kind = kind_of(record)
        digest.add(record)
        check.done += 1
        check.images += record["stop"] - record["first"]
        good.append(unit)
    check.failed = {unit: str(file.get("what")) for unit, file in folder.failed().items()}
    if len(spec.units) - len(present) > MISSING:
        raise ValueError(
            f"fastdiff.jobs: expected at most {MISSING} missing units, got"
            f" {len(spec.units) - len(present)} by the spec of {folder.path}."
        )
    check.missing = [u for u in spec.units.numbers if u not in present and u not in check.failed]
    check.foreign = foreign(folder)
    check.digest = digest.hex
    job = None
    if good and (recompute or rollout):
        try:
            job = Job.open(spec, conditions=folder.conditions, where=str(folder.path), trust=trust)
        except (ValueError, FileNotFoundError, ImportError) as error:
            if recompute or isinstance(error, SpecMismatch):
                raise
            check.unproven = str(error)
    if rollout:
        _check_rollouts(folder, job, good, check)
    if recompute and job is not None:
        _recompute(folder, job, recompute, good, check)
    for unit in check.bad.keys() & set(good):  # the units that were made again and differ
        check.done -= 1
        check.images -= len(spec.units.ids(unit))
    _write_findings(folder, check.bad)
    return check


def _recompute(
    folder: Folder, job: Job, number: int, units: list[int], check: DatasetCheck
) -> None:
    """Makes some units again, chosen at random, and compares them."""
    check.recomputed = sorted(random.SystemRandom().sample(units, min(number, len(units))))
    with repeatable(folder.spec.threads):
        for unit in check.recomputed:
            drawn, record = job.draw(unit), read_record(folder.record_path(unit), unit)
            if pixels_sha256(drawn.array.cpu().numpy()) != record["pixels"]:
                check.bad[unit] = OTHER_PIXELS
            elif drawn.labels != record["labels"]:
                check.bad[unit] = OTHER_LABELS
            elif trajectory.sha256(folder.spec, unit, drawn.trajectory) != [
                file["sha256"] for file in trajectory_files(record)
            ]:
                check.bad[unit] = OTHER_TRAJECTORY


def _check_rollouts(folder: Folder, job: Job | None, units: list[int], check: DatasetCheck) -> None:
    """Checks the trajectories of these units."""
    found = RolloutCheck(folder, job)
    with repeatable(folder.spec.threads):
        for unit in units:
            what = found.problem(read_record(folder.record_path(unit), unit))
            if what:
                check.bad[unit] = ROLLOUT + what
    check.transitions = found.transitions


def kind_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what the records of all units have in common."""
    return tuple(record["shape"][1:]), record["dtype"], record["labels"] is None


def _disagreement(
    spec: RunSpec, labels: SpecLabels, record: dict[str, Any], kind: tuple[Any, ...] | None
) -> str:
    """Returns in what a record differs from its run's spec or from other records; "" if in nothing.

    kind: `kind_of` an earlier record.
    """
    if record["seed"] != spec.seed:
        return f"has the seed {record['seed']}, the run has {spec.seed}"
    if not labels.agree(range(record["first"], record["stop"]), record["labels"]):
        return "has other labels than the run's conditions"
    if kind is not None and kind != kind_of(record):
        return OTHER_KIND
    return ""


def _check_units(
    folder: Folder, units: Iterable[tuple[int, Path]], threads: int
) -> Iterator[tuple[tuple[int, Path], tuple[str, dict[str, Any] | None]]]:
    units = iter(units)
    with ThreadPoolExecutor(threads) as pool:
        while part := list(islice(units, 512)):  # map() would submit every unit at once
            yield from zip(
                part, pool.map(lambda item: check_unit(folder, *item), part), strict=True
            )


def check_unit(folder: Folder, unit: int, path: Path) -> tuple[str, dict[str, Any] | None]:
    """Reads a unit and returns (what is wrong, in words, or an empty text; its record)."""
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
            with open_regular(name) as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file["sha256"]:
                    return f"{name} is not as it was written", record
        wrong = trajectory.problem(folder.path, folder.spec, record)
        if wrong:
            return f"{path} {wrong}", record
        if pixels_sha256(FORMATS[folder.spec.format].read(folder.path, record)) != record["pixels"]:
            return f"{path} has the hash of other pixels", record
    except FileNotFoundError as error:
        return f"{error.filename or path} is missing", None
    except (OSError, ValueError) as error:
        return str(error) if "fastdiff" in str(error) else f"{path} names {error}", None
    return "", record


def remove_damaged_records(folder: Folder) -> list[int]:
    """Removes the records of damaged units, so that they are made again, and returns the units.

    These are units with a damaged record, with files that are missing or have another size, and
    those that `verify` found damaged and that still are. Only the files of the latter are read, so
    that 10⁵ units take seconds.
    """
    numbers = folder.spec.units.numbers
    damaged = [
        status.unit for status in quick_check(folder) if status.problem and status.unit in numbers
    ]
    findings = _read_findings(folder.path / FINDINGS)
    labels = SpecLabels(folder.spec, folder.conditions) if findings else None
    for unit, problem in findings.items():
        path = folder.record_path(unit)
        if path.exists() and (
            problem.startswith(ROLLOUT)
            or problem.endswith(ALONE)
            or unit not in numbers
            or _problem(folder, labels, unit, path)
        ):
            damaged.append(unit)
    for unit in damaged:
        folder.forget(unit)
    if findings:
        (folder.path / FINDINGS).unlink(missing_ok=True)
    return damaged


def _problem(folder: Folder, labels: SpecLabels | None, unit: int, path: Path) -> str:
    """Returns what is wrong with a unit's files and record."""
    problem, record = check_unit(folder, unit, path)
    if problem or record is None or labels is None:
        return problem
    return _disagreement(folder.spec, labels, record, None)


def _read_findings(path: Path) -> dict[int, str]:
    """Returns the units that `verify` found damaged, and why."""
    try:
        return {
            int(unit): str(problem)
            for unit, problem in parse_json(read_bytes(path))["bad"].items()
            if unit.isascii() and unit.isdecimal() and len(unit) < 18
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no file, or a damaged one


def foreign(folder: Folder) -> list[str]:
    """Returns the names in the folder that are no part of a dataset."""
    own = OWN | ({folder.conditions.name} if folder.conditions else set())
    if folder.spec.save is not None:
        own |= {TRAJECTORIES}
    names = [e.name for e in os.scandir(folder.path)]
    fmt = FORMATS[folder.spec.format]
    found = [n for n in names if n not in own and not n.startswith(".nfs") and not fmt.owns(n)]
    return sorted(found) + list(stray_names(folder.path))


def _write_findings(folder: Folder, bad: dict[int, str]) -> None:
    path = folder.path / FINDINGS
    try:
        if bad:
            folder.write(
                FINDINGS,
                (
                    json.dumps({"bad": {str(u): w for u, w in bad.items()}}, indent=1) + "\n"
                ).encode(),
            )
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass  # a read-only folder can be checked, too
