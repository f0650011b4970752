"""The labels that the records of a run must have, as far as they follow from its spec and
conditions file.

The model is not opened, so that a dataset can be checked without running anybody's code. What only
the model knows, such as the number of a class that the conditions file names by a word, is left
out; `fastdiff verify --recompute` compares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .conditions import FileConditions, PictureConditions
from .models.conditioning import Arguments, Classes, Custom, InvalidEntry
from .spec import RunSpec


class SpecLabels:
    """The labels that follow from a run's spec.

    Args:
        spec: of the run.
        file: its conditions file, where it has one.

    Attributes:
        problem: what is wrong with the conditions file, in words; empty if nothing is.
    """

    def __init__(self, spec: RunSpec, file: Path | None):
        takes = spec.model["identity"].get("takes", {})
        self._takes, self._listed = takes, spec.conditions.get("classes")
        self._file: FileConditions | None = None
        self.problem = ""
        if file is None:
            return
        if "pictures" in spec.conditions:  # which have no labels
            try:
                PictureConditions.read(spec.conditions, file)
            except (ValueError, OSError) as error:
                self.problem = str(error)
            return
        try:
            found = FileConditions(_Numbers(takes.get("classes") or 1), file, spec.ids, check=False)
        except (ValueError, OSError) as error:
            self.problem = str(error)
            return
        if found.identity != dict(spec.conditions):
            self.problem = f"{file} is not the conditions file that the run began with"
        else:
            self._file = found

    def agree(self, ids: range, labels: Sequence[int] | None) -> bool:
        """Whether these labels of consecutive ids can be those of the run."""
        if "classes" not in self._takes:
            # the user's own kinds of conditions may have labels that nothing here knows
            known = self._takes.keys() & (Arguments.KEYS | Custom.KEYS)
            return labels is None or not known
        if labels is None:
            return False
        if self._listed is not None:
            expected: list[Any] = [self._listed[i % len(self._listed)] for i in ids]
        elif self._file is not None:
            expected = self._file.entries(ids.start, ids.stop)
        else:
            return True
        return all(e is None or e == label for e, label in zip(expected, labels, strict=True))


class _Numbers(Classes):
    """Classes of which the names are not known: their entries are None."""

    def parse(self, value: Any) -> Any:
        try:
            return super().parse(value)
        except InvalidEntry:
            return None
