"""Streams the samples of a dataset unit by unit, each checked against its record, for exports.

One unit is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..pretrained.files import read_json
from .folder import SPEC
from .formats import FORMATS, Block, pixels_sha256
from .records import intact, read_record, record_name
from .spec import recipe_of
from .units import Units


class DatasetError(ValueError):
    """Units of a dataset are missing, or differ from their records."""


class Samples:
    """The chosen samples of a dataset: a fastdiff.jobs.formats.Source.

    Args:
        folder: of the dataset.
        ids: (first, last), both included; None for all.
        partial: leaves out missing units instead of refusing them.
        progress: called after each unit with its number of samples.

    Raises:
        FileNotFoundError, ValueError: for a folder that is no dataset, and for ids outside it.
        DatasetError: for missing units, and during iteration for damaged ones.
    """

    def __init__(
        self,
        folder: Path,
        ids: tuple[int, int] | None,
        partial: bool,
        progress: Callable[[int], object] | None = None,
    ):
        spec = _spec(folder)
        self.folder, self.progress = folder, progress
        self.format = FORMATS[spec["format"]]
        self.seed: int = spec["seed"]
        self.spec, self.provenance = spec["hash"], provenance(spec)
        self.units = Units(spec["ids"][0], spec["ids"][1], spec["unit"])
        first, last = ids or spec["ids"]
        if not self.units.first <= first <= last <= self.units.last:
            raise ValueError(
                f"fastdiff.jobs.export: expected ids within {self.units.first}-{self.units.last},"
                " got"
                f" {first}-{last}."
            )
        self.selected = Units(first, last, self.units.size)
        missing = [u for u in self.selected.numbers if not os.path.exists(folder / record_name(u))]
        if missing and (len(missing) == len(self.selected) or not partial):
            self._raise_missing(missing)
        self.partial = bool(missing)
        absent = set(missing)
        self.present: Sequence[int] = (
            [u for u in self.selected.numbers if u not in absent]
            if absent
            else self.selected.numbers
        )
        self.count = sum(len(self.selected.ids(unit)) for unit in self.present)
        record = self._read_record(self.present[0])
        self.shape, self.dtype = tuple(record["shape"][1:]), str(record["dtype"])
        self.labelled = record["labels"] is not None

    def ids(self) -> Iterator[range]:
        for unit in self.present:
            yield self.selected.ids(unit)

    def labels(self) -> Iterator[tuple[range, Sequence[int]]]:
        for unit in self.present:
            record, ids = self._record(unit), self.selected.ids(unit)
            yield ids, self._cut(record["labels"], record, ids)

    def blocks(self) -> Iterator[Block]:
        for unit in self.present:
            record, ids = self._record(unit), self.selected.ids(unit)
            try:
                array = self.format.read(self.folder, record)
            except (FileNotFoundError, ValueError) as error:
                raise DatasetError(
                    f"{error} It belongs to unit {unit}: run `fastdiff resume {self.folder}`, then"
                    " export again."
                ) from None
            if pixels_sha256(array) != record["pixels"]:
                self._damaged(unit, "samples with the hash in its record", "others")
            labels = None if record["labels"] is None else self._cut(record["labels"], record, ids)
            yield Block(unit, ids.start, self.seed, self._cut(array, record, ids), labels)
            if self.progress is not None:
                self.progress(len(ids))

    @staticmethod
    def _cut(values: Any, record: Mapping[str, Any], ids: range) -> Any:
        return values[ids.start - record["first"] : ids.stop - record["first"]]

    def _record(self, unit: int) -> dict[str, Any]:
        """Returns a unit's record, after comparing its kind of samples with the first record's."""
        record = self._read_record(unit)
        kind = tuple(record["shape"][1:]), record["dtype"], record["labels"] is not None
        expected = self.shape, self.dtype, self.labelled
        if kind != expected:
            self._damaged(unit, _kind(*expected), _kind(*kind))
        return record

    def _read_record(self, unit: int) -> dict[str, Any]:
        path, ids = self.folder / record_name(unit), self.units.ids(unit)
        try:
            record = read_record(path, unit)
        except FileNotFoundError:
            self._damaged(unit, f"its record {path}", "none")
        except ValueError as error:
            raise DatasetError(str(error)) from None
        if not intact(record):
            self._damaged(unit, f"the record {path} as it was written", "a changed one")
        got = record["first"], record["stop"], record["seed"]
        if got != (ids.start, ids.stop, self.seed):
            self._damaged(
                unit,
                f"the ids {ids.start}-{ids.stop - 1} of seed {self.seed}",
                f"{got[0]}-{got[1] - 1} of seed {got[2]}",
            )
        return record

    def _damaged(self, unit: int, expected: str, got: str) -> NoReturn:
        raise DatasetError(
            f"fastdiff.jobs.export: expected unit {unit} to have {expected}, got {got}. "
            f"Run `fastdiff resume {self.folder}`, then export again."
        )

    def _raise_missing(self, missing: Sequence[int]) -> NoReturn:
        ids = self.selected.ids(missing[0])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        alternative = (
            ", or export what is there with --partial" if len(missing) < len(self.selected) else ""
        )
        raise DatasetError(
            "fastdiff.jobs.export: expected all units of the ids"
            f" {self.selected.first}-{self.selected.last}, got none for unit {missing[0]} (ids"
            f" {ids.start}-{ids.stop - 1}){more}. Run `fastdiff resume {self.folder}`{alternative}."
        )


def provenance(spec: Mapping[str, Any]) -> dict[str, str]:
    """Returns what files say about the origin of their samples.

    These are the hashes of recipe and plan, and the version of fastdiff that made them. A sample
    has the same in every run that holds it.
    """
    found = {
        "recipe": recipe_of(spec),
        "plan": _nested(spec, "plan", "hash"),
        "fastdiff": _nested(spec, "machine", "fastdiff"),
    }
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _nested(spec: Mapping[str, Any], outer: str, key: str) -> Any:
    inner = spec.get(outer)
    return inner.get(key) if isinstance(inner, Mapping) else None


def _spec(folder: Path) -> dict[str, Any]:
    """Returns the run spec as JSON, with the keys checked that an export needs.

    The plan and the machine in it are not checked. Raises FileNotFoundError or ValueError in one
    sentence.
    """
    path = folder / SPEC
    if not path.exists():
        raise FileNotFoundError(
            f"fastdiff.jobs.export: expected a dataset in {folder}, got no {SPEC} there. Name the"
            " folder"
            " of a run."
        )
    spec = read_json(path)
    ids = spec.get("ids")
    pair = ids if isinstance(ids, list) and len(ids) == 2 else [None]
    whole = all(type(v) is int for v in (*pair, spec.get("unit"), spec.get("seed")))
    if not whole or spec.get("format") not in FORMATS or not isinstance(spec.get("hash"), str):
        raise ValueError(
            f"fastdiff.jobs.export: expected ids, unit, seed, format and hash of a run in {path},"
            " got"
            " others."
        )
    return spec


def _kind(shape: tuple[int, ...], dtype: str, labelled: bool) -> str:
    return f"samples of {dtype} {list(shape)} with{'' if labelled else 'out'} classes"
