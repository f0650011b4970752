"""What records, names and sizes tell of a dataset's units, without reading a sample: which are
there, which are damaged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from .folder import Folder
from .records import read_files, record_name, unit_numbers

PART = 500  # units a thread looks at before it asks for more
THREADS = (
    16  # on a network's file system each file costs a journey, and journeys can be made at once
)
# seconds a unit where files are near: then threads would only wait for each other's interpreter
NEAR = 1e-4


class Seen(NamedTuple):
    """A unit that has a record. Attributes: unit; bytes: of its files; wrong: what is, in words, or
    nothing.
    """

    unit: int
    bytes: int
    wrong: str


def glance(folder: Folder) -> Iterator[Seen]:
    """Looks at every unit that has a record, in order. 10⁵ units take seconds."""
    units, path, numbers = unit_numbers(folder.path), str(folder.path), folder.spec.units.numbers

    def look(part: list[int]) -> list[Seen]:
        return [
            _look(path, unit) if unit in numbers else Seen(unit, 0, "it is no unit of the run")
            for unit in part
        ]

    begin = time.perf_counter()
    first = look(list(islice(units, PART)))
    near = time.perf_counter() - begin < NEAR * len(first)
    yield from first
    if near:
        while part := list(islice(units, PART)):
            yield from look(part)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        while parts := [part for _ in range(4 * THREADS) if (part := list(islice(units, PART)))]:
            for seen in pool.map(look, parts):
                yield from seen


def _look(folder: str, unit: int) -> Seen:
    total = 0
    try:
        for file in read_files(f"{folder}/{record_name(unit)}", unit):
            size = os.stat(f"{folder}/{file['name']}").st_size
            if size != file["bytes"]:
                return Seen(unit, total, f"{file['name']} has {size} bytes, not {file['bytes']}")
            total += size
    except FileNotFoundError as error:
        return Seen(unit, total, f"{error.filename} is missing")
    except (OSError, ValueError) as error:
        return Seen(unit, total, str(error))
    return Seen(unit, total, "")
