"""Compares and joins the lines of conditions files, without holding a file in memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..outside import shown
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


def join_lines(parts: Sequence[tuple[range, Path]], out: Path) -> dict[str, Any]:
    """Writes the lines of several conditions files as one, and returns its identity.

    parts: (ids, file with a line for each of them), in the order of the first ids, without gaps.

    Raises ValueError where two files have different lines for an id.
    """
    begin = stop = parts[0][0].start
    with open(out, "wb") as joined:
        for ids, path in parts:
            joined.flush()
            with open(path, "rb") as file, open(out, "rb") as before:
                lines = lines_of(file)
                known = itertools.islice(lines_of(before), ids.start - begin, None)
                for number in range(ids.start, min(stop, ids.stop)):
                    if next(lines) != next(known):
                        raise ValueError(
                            f"fastdiff.jobs: expected one condition of the id {number}, got"
                            f" another one in {shown(path)} than in the other datasets."
                        )
                joined.writelines(line + b"\n" for line in lines)
            stop = max(stop, ids.stop)
    with open(out, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": digest, "lines": stop - begin}
