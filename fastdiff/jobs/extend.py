"""Gives a dataset further ids.

The folder's spec is replaced by that of the same run with more ids. The result is a dataset like
any other, some units of which are missing: nothing in it says that it was smaller once. Where the
first or the last unit gains samples, it is made again, since a unit is a whole block. Its record is
kept in earlier/ until then, and the samples that it describes must come out with the same pixels.

The order of the steps makes a kill harmless at any instant: copies of the records of those units,
the new conditions file, the new spec under the old one's name, and last what no longer belongs to
the folder. `tidy` takes the last step again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..outside import shown
from .condition_lines import first_other_line
from .folder import SPEC, Folder, conditions_name
from .formats import pixels_sha256
from .manifest import MANIFEST
from .records import failed_unit, intact, read_record
from .spec import RunSpec, SpecMismatch

EARLIER = "earlier"


def holds(ids: tuple[int, int], others: tuple[int, int]) -> bool:
    """Whether a range of ids holds all of another one and more."""
    return ids != others and ids[0] <= others[0] and others[1] <= ids[1]


def is_wider(spec: RunSpec, there: RunSpec) -> bool:
    """Whether a spec is that of the run `there` with further ids; conditions are not compared."""
    return spec.recipe == there.recipe and holds(spec.ids, there.ids)


def extend(folder: Folder, spec: RunSpec, conditions: Path | bytes | None = None) -> Folder:
    """Gives a dataset the further ids of a spec, and returns its folder with the new spec.

    Any number of workers may do the same at once. Their samples are then made as any others.

    Args:
        folder: the dataset.
        spec: of the same run with more ids (`is_wider`).
        conditions: the conditions file of all ids, or the content of a file of pictures, where the
            spec names one.

    Raises:
        SpecMismatch: for other conditions of the ids that are there, and where another command
            gives the dataset other ids at the same time.
        OSError: in one sentence, where nothing can be written.
    """
    there = folder.spec
    if not is_wider(spec, there):
        raise ValueError(
            f"fastdiff.jobs: expected the run of {folder.path} with more ids than"
            f" {there.ids[0]}-{there.ids[1]}, got another run, or ids {spec.ids[0]}-{spec.ids[1]}."
        )
    _compare_conditions(folder, spec, conditions)
    for unit in {there.units.numbers[0], there.units.numbers[-1]}:
        if spec.units.ids(unit) != there.units.ids(unit):
            _keep_record(folder, unit)
    before, after = (conditions_name(s.conditions) for s in (there, spec))
    if after is not None and after != before:
        assert conditions is not None
        folder.write(
            after, conditions if isinstance(conditions, bytes) else conditions.read_bytes()
        )
    folder.write(SPEC, (json.dumps(spec.to_json(), indent=1) + "\n").encode())
    found = Folder(folder.path)
    if found.spec.hash != spec.hash:
        raise SpecMismatch(
            f"fastdiff.jobs: expected the ids {spec.ids[0]}-{spec.ids[1]} in {folder.path}, got"
            f" {found.spec.ids[0]}-{found.spec.ids[1]}, which another command gave it at the same"
            " time. Start this one again."
        )
    folder.remove(MANIFEST)  # of the fewer ids
    if before is not None and before != after:
        folder.remove(before)
    tidy(found)
    return found


def tidy(folder: Folder) -> None:
    """Removes the records of units that gained samples, so that they are made, and the copies of
    such records once the units are made.
    """
    for unit, record in _kept(folder.path).items():
        path = folder.record_path(unit)
        try:
            ids = _ids(read_record(path, unit))
        except FileNotFoundError:
            continue
        except ValueError:
            ids = range(0)  # damaged
        if unit in folder.spec.units.numbers and ids == folder.spec.units.ids(unit):
            folder.remove(_name(unit))
        elif ids == _ids(record):
            folder.forget(unit)


def check_kept(folder: Folder, unit: int, ids: range, array: np.ndarray) -> bool:
    """Compares a unit's samples with those that it had before its dataset was extended.

    ids: of the samples in the array [n, …].

    Returns whether there were any. Raises ValueError where they differ.
    """
    record = _read(folder.path / _name(unit), unit)
    if record is None:
        return False
    before = _ids(record)
    if before[0] < ids[0] or before[-1] > ids[-1]:
        return True
    same = array[before.start - ids.start : before.stop - ids.start]
    if pixels_sha256(same) != record["pixels"]:
        raise ValueError(
            f"fastdiff.jobs: expected the samples {before[0]}-{before[-1]} of {folder.path} with"
            " the pixels that they had before the dataset was extended, got others. This machine"
            " does not compute what made them; extend the dataset on that one."
        )
    return True


def drop_kept(folder: Folder, unit: int) -> None:
    """Removes the copy of a unit's earlier record."""
    folder.remove(_name(unit))


def _compare_conditions(folder: Folder, spec: RunSpec, file: Path | bytes | None) -> None:
    """Raises SpecMismatch unless the ids that are there keep their conditions."""
    there, here = folder.spec.conditions, spec.conditions
    if "file" in there and "file" in here and folder.conditions is not None:
        assert isinstance(file, Path)
        skip = folder.spec.ids[0] - spec.ids[0]
        number = first_other_line(folder.conditions, file, skip)
        if number is None:
            return
        raise SpecMismatch(
            f"fastdiff.jobs: expected the conditions of {folder.path} for the ids that it holds,"
            f" got another line for the id {folder.spec.ids[0] + number}, line"
            f" {skip + number + 1} of {shown(file)}."
        )
    if dict(there) != dict(here):
        raise SpecMismatch(
            f"fastdiff.jobs: expected the conditions {dict(there)} of {folder.path}, got"
            f" {dict(here)}."
        )


def _keep_record(folder: Folder, unit: int) -> None:
    """Copies a unit's record to earlier/, if it is intact and of the folder's ids."""
    record = _read(folder.record_path(unit), unit)
    if record is not None and _ids(record) == folder.spec.units.ids(unit):
        folder.write(_name(unit), (json.dumps(record) + "\n").encode())


def _name(unit: int) -> str:
    return f"{EARLIER}/{unit:09d}.json"


def _kept(folder: Path) -> dict[int, Mapping[str, Any]]:
    """Returns the records in earlier/ by unit."""
    try:
        units = [failed_unit(name) for name in os.listdir(folder / EARLIER)]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {u: _read(folder / _name(u), u) for u in sorted(u for u in units if u is not None)}
    return {unit: record for unit, record in found.items() if record is not None}


def _read(path: Path, unit: int) -> Mapping[str, Any] | None:
    """Returns an intact record, None where there is none."""
    try:
        record = read_record(path, unit)
    except (FileNotFoundError, ValueError):
        return None
    return record if intact(record) else None


def _ids(record: Mapping[str, Any]) -> range:
    return range(record["first"], record["stop"])
