"""A quick check of a dataset's units from records, names and file sizes, without reading samples.

It finds which units are there, and those whose record is damaged or whose files are missing or have
another size.
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

PART = 500  # units that a thread checks at a time
# on a network file system each file costs a round trip, and several can be in flight
THREADS = 16
# seconds per unit below which the files are local: threads would then only contend for the GIL
LOCAL = 1e-4


class UnitStatus(NamedTuple):
    """The state of a unit that has a record.

    Attributes:
        unit: its number.
        bytes: of its files.
        problem: what is wrong, in words; empty if nothing is.
    """

    unit: int
    bytes: int
    problem: str


def quick_check(folder: Folder) -> Iterator[UnitStatus]:
    """Yields the state of every unit that has a record, in order. 10⁵ units take seconds."""
    units, path, run = unit_numbers(folder.path), str(folder.path), folder.spec.units
    numbers = run.numbers

    def check(part: list[int]) -> list[UnitStatus]:
        return [
            _check_unit(path, unit, run.ids(unit))
            if unit in numbers
            else UnitStatus(unit, 0, "it is no unit of the run")
            for unit in part
        ]

    begin = time.perf_counter()
    first = check(list(islice(units, PART)))
    local = time.perf_counter() - begin < LOCAL * len(first)
    yield from first
    if local:
        while part := list(islice(units, PART)):
            yield from check(part)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        while parts := [part for _ in range(4 * THREADS) if (part := list(islice(units, PART)))]:
            for states in pool.map(check, parts):
                yield from states


def _check_unit(folder: str, unit: int, ids: range) -> UnitStatus:
    total = 0
    try:
        for file in read_files(f"{folder}/{record_name(unit)}", unit, ids):
            size = os.stat(f"{folder}/{file['name']}").st_size
            if size != file["bytes"]:
                problem = f"{file['name']} has {size} bytes, not {file['bytes']}"
                return UnitStatus(unit, total, problem)
            total += size
    except FileNotFoundError as error:
        return UnitStatus(unit, total, f"{error.filename} is missing")
    except (OSError, ValueError) as error:
        return UnitStatus(unit, total, str(error))
    return UnitStatus(unit, total, "")
