"""Compares and joins the lines of conditions files, without holding a file in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from .conditions import BYTE_ORDER_MARK


def first_other_line(path: Path, other: Path, skip: int) -> int | None:
    """Returns the number of the first line of a file that another file does not hold.

    Line k of the file, from 0, is compared with line k + skip of the other one, without line ends
    and the mark at the start. None where all are equal.
    """
    with open(path, "rb") as file, open(other, "rb") as there:
        pairs = itertools.zip_longest(lines_of(file), itertools.islice(lines_of(there), skip, None))
        for number, (line, found) in enumerate(pairs):
            if line is None:
                return None
            if line != found:
                return number
    return None


def lines_of(file: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines of a conditions file without line ends and the mark at the start."""
    for number, line in enumerate(file):
        yield (line if number else line.removeprefix(BYTE_ORDER_MARK)).strip()
