"""Joins datasets of one run spec into one that holds the ids of all of them.

The new folder gets the spec of a run with all the ids, and its units are then taken from the other
datasets instead of computed. A merge that was killed is thus an incomplete dataset: the same
command continues it, and so does `fastdiff resume`, which computes what is missing.

A unit that one of the datasets holds whole is copied, file by file. Of a unit that is divided among
several, the samples are joined and written anew. What several datasets hold must be equal.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..outside import read_bytes
from . import trajectory
from .condition_lines import join_lines
from .folder import Content, Folder
from .formats import FORMATS, Block, pixels_sha256
from .labels import SpecLabels
from .runner import JobReport, finish, prepare, update_report
from .samples import DatasetError, provenance
from .spec import RunSpec, SpecMismatch, differences
from .verify import check_unit, kind_of, remove_damaged_records
from .writer import new_record

_WHERE = "fastdiff.jobs.merge"


class _Part(NamedTuple):
    """What a dataset holds of a unit."""

    folder: Folder
    record: Mapping[str, Any]

    @property
    def ids(self) -> range:
        return range(self.record["first"], self.record["stop"])

    def array(self) -> np.ndarray:
        return FORMATS[self.folder.spec.format].read(self.folder.path, dict(self.record))

    def trajectories(self) -> dict[str, np.ndarray]:
        tensors = trajectory.read(self.folder.path, self.record)
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def merge(
    out: str | os.PathLike[str],
    folders: Sequence[str | os.PathLike[str]],
    *,
    progress: Callable[[int], object] | None = None,
    stop: threading.Event | None = None,
) -> JobReport:
    """Writes the samples of several datasets into the new dataset `out`, or continues to.

    No model is opened and nothing is computed. Every file is compared with its record.

    Args:
        out: the new folder, or that of the same merge.
        folders: of two or more datasets, whose specs differ in ids and conditions alone, and whose
            ids together have no gaps. Ids may be in several of them, and every unit may be missing
            in some, if together they hold all samples.
        progress: called after each unit with its number of samples.
        stop: an event; when it is set, the merge ends after its current unit.

    Raises:
        SpecMismatch: for datasets of different specs, and where `out` is another dataset.
        fastdiff.jobs.samples.DatasetError: for samples that are missing, damaged or not equal in
            two datasets.
        ValueError, FileNotFoundError, OSError: in one sentence.
    """
    begin = time.monotonic()
    sources = sorted((Folder(path) for path in folders), key=lambda s: s.spec.ids)
    _check_paths(Path(out), sources)
    ids = _check_specs(sources)
    with tempfile.TemporaryDirectory(prefix="fastdiff-merge-") as temporary:
        identity, file = _conditions(sources, Path(temporary) / "conditions")
        spec = sources[0].spec.with_ids(ids, identity)
        held = [source.done() for source in sources]
        for unit in spec.units.numbers:
            _check_held(spec, unit, sources, held)
        folder = Folder.create(out, spec, file)
    if folder.spec.hash != spec.hash:
        (line, *_) = differences(folder.spec.to_json(), spec.to_json())[1:] or ["its hash"]
        raise SpecMismatch(
            f"{_WHERE}: expected {folder.path} to be new or a merge of these datasets, got another"
            f" run: {line}. Name another folder."
        )
    report = JobReport(len(spec.units))
    prepare(folder, retry_failed=False)
    remove_damaged_records(folder)
    done = folder.done()
    try:
        for unit in spec.units.numbers:
            if stop is not None and stop.is_set():
                report.stopped = True
                break
            count = len(spec.units.ids(unit))
            if unit not in done:
                _take(
                    folder, unit, [s for s, has in zip(sources, held, strict=True) if unit in has]
                )
                report.made, report.images = report.made + 1, report.images + count
            if progress is not None:
                progress(count)
    finally:
        folder.leave()
        update_report(report, folder, begin)
    finish(folder, report)
    return report


def _check_paths(out: Path, sources: Sequence[Folder]) -> None:
    if len(sources) < 2:
        raise ValueError(f"{_WHERE}: expected two datasets or more, got {len(sources)}.")
    here = out.resolve()
    for source in sources:
        there = source.path.resolve()
        if here == there or there in here.parents or here in there.parents:
            raise ValueError(
                f"{_WHERE}: expected a new folder outside the dataset {source.path}, got {out}."
                " Name another one."
            )


def _check_specs(sources: Sequence[Folder]) -> tuple[int, int]:
    """Returns the first and the last id of all. Raises for different specs and for gaps."""
    first = sources[0]
    stop = first.spec.ids[0]
    for before, source in zip([first, *sources], sources, strict=False):
        lines = differences(_comparable(first.spec), _comparable(source.spec))
        if lines:
            raise SpecMismatch(
                f"{_WHERE}: expected datasets of one run spec but for their ids, got {first.path}"
                f" and {source.path}, which differ in {lines[0]}."
            )
        if source.spec.ids[0] > stop:
            raise ValueError(
                f"{_WHERE}: expected ids without gaps, got none between {stop - 1} in"
                f" {before.path} and {source.spec.ids[0]} in {source.path}. Extend one of them with"
                " `fastdiff sample --out DIR --ids A-B` first."
            )
        stop = max(stop, source.spec.ids[1] + 1)
    return first.spec.ids[0], stop - 1


def _comparable(spec: RunSpec) -> dict[str, Any]:
    """Returns the content of a spec that must be equal."""
    content = {k: v for k, v in spec.to_json().items() if k not in ("hash", "ids")}
    if "file" in spec.conditions:
        content["conditions"] = "a file"
    return content


def _conditions(
    sources: Sequence[Folder], joined: Path
) -> tuple[Mapping[str, Any], Path | bytes | None]:
    """Returns (identity of the conditions of all ids, their file or None)."""
    for source in sources:
        problem = SpecLabels(source.spec, source.conditions).problem
        if problem:
            raise DatasetError(f"{_WHERE}: expected {source.path} as it was written: {problem}.")
    spec, file = sources[0].spec, sources[0].conditions
    if "file" not in spec.conditions:
        return spec.conditions, file
    parts = [
        (range(source.spec.ids[0], source.spec.ids[1] + 1), source.conditions)
        for source in sources
        if source.conditions is not None
    ]
    return join_lines(parts, joined), joined


def _check_held(
    spec: RunSpec, unit: int, sources: Sequence[Folder], held: Sequence[set[int]]
) -> None:
    """Raises DatasetError unless the datasets together have all samples of a unit."""
    ids = spec.units.ids(unit)
    stop = ids.start
    for source, has in zip(sources, held, strict=True):
        found = source.spec.units.ids(unit) if unit in has else range(0)
        if found and found.start <= stop:
            stop = max(stop, found.stop)
    if stop < ids.stop:
        lacking = next(s for s in sources if s.spec.ids[0] <= stop <= s.spec.ids[1])
        raise DatasetError(
            f"{_WHERE}: expected all samples of the datasets, got none of the id {stop}. Run"
            f" `fastdiff resume {lacking.path}`, then merge again."
        )


def _take(folder: Folder, unit: int, sources: Sequence[Folder]) -> None:
    """Writes a unit from the datasets that have some of its samples."""
    begin = time.monotonic()
    parts = [_part(source, unit) for source in sources]
    ids = folder.spec.units.ids(unit)
    whole = next((part for part in parts if part.ids == ids), None)
    if whole is not None and len(parts) == 1:
        _copy(folder, unit, whole)
        return
    cuts, stop = [], ids.start
    for part in parts:
        if kind_of(dict(part.record)) != kind_of(dict(parts[0].record)):
            _unequal(unit, parts[0], part)
        if part.ids.stop > stop:
            cuts.append((part, slice(stop - part.ids.start, len(part.ids))))
            stop = part.ids.stop
    array = np.concatenate([part.array()[own] for part, own in cuts])
    labels = None
    if parts[0].record["labels"] is not None:
        labels = [label for part, own in cuts for label in part.record["labels"][own]]
    tensors = None
    if folder.spec.save is not None:
        tensors = trajectory.join([trajectory.cut(p.trajectories(), own) for p, own in cuts])
    for part in parts:
        _compare(unit, part, cuts[0][0], ids, array, labels, tensors)
    if whole is not None:
        _copy(folder, unit, whole)
        return
    fmt = FORMATS[folder.spec.format]
    encoder = fmt.encoder(array.shape[1:], array.dtype.name)
    if encoder != folder.spec.machine.get("encoder"):
        raise SpecMismatch(
            f"{_WHERE}: expected {folder.spec.machine.get('encoder')} to write unit {unit}, which"
            f" is divided among the datasets, got {encoder}. Install that version."
        )
    block = Block(unit, ids.start, folder.spec.seed, array, labels)
    files: list[tuple[str, Content]] = list(fmt.files(block, provenance(folder.spec.to_json())))
    if tensors is not None:
        files.append(trajectory.encode_stored(folder.spec, unit, tensors))
    folder.commit(unit, files, new_record(block, folder.worker, time.monotonic() - begin))


def _part(source: Folder, unit: int) -> _Part:
    """Returns what a dataset holds of a unit, whose files it compares with the record."""
    problem, record = check_unit(source, unit, source.record_path(unit))
    if problem or record is None:
        raise DatasetError(
            f"{_WHERE}: expected unit {unit} of {source.path} as it was written: {problem}. Run"
            f" `fastdiff resume {source.path}`, then merge again."
        )
    return _Part(source, record)


def _copy(folder: Folder, unit: int, part: _Part) -> None:
    """Writes a unit with the files that a dataset has of it."""
    files = [
        (file["name"], read_bytes(part.folder.path / file["name"], file["bytes"]))
        for file in part.record["files"]
    ]
    record = {k: v for k, v in part.record.items() if k not in ("files", "checksum")}
    folder.commit(unit, files, record)


def _compare(
    unit: int,
    part: _Part,
    other: _Part,
    ids: range,
    array: np.ndarray,
    labels: Sequence[int] | None,
    tensors: Mapping[str, np.ndarray] | None,
) -> None:
    """Raises DatasetError unless a part has the samples, labels and trajectories of the whole."""
    own = slice(part.ids.start - ids.start, part.ids.stop - ids.start)
    same = pixels_sha256(array[own]) == part.record["pixels"]
    same &= labels is None or labels[own] == part.record["labels"]
    if tensors is not None:
        there, here = part.trajectories(), trajectory.cut(tensors, own)
        same &= all(there[name].tobytes() == here[name].tobytes() for name in here)
    if not same:
        _unequal(unit, other, part)


def _unequal(unit: int, part: _Part, other: _Part) -> None:
    raise DatasetError(
        f"{_WHERE}: expected equal samples of unit {unit} in {part.folder.path} and"
        f" {other.folder.path}, got others. `fastdiff verify DIR --recompute N` shows which one"
        " differs from its spec."
    )
