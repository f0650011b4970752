"""Units of work: fixed blocks of consecutive sample ids, and the order in which workers take them.

Unit u of size B holds the ids [u B, (u + 1) B) that are in the run, and is always computed as that
whole block: samples outside the run are computed and dropped. The batch of a sample is therefore a
function of its id and of B, and does not depend on the run.

Unit u is assigned to worker u mod world. A worker takes its assigned units in order, then all units
that are still missing, shuffled. Before each unit it checks whether another worker has finished it.
`world` is thus a hint that keeps workers apart, and not the number of workers that must exist: any
subset of them, started at any time, finishes the run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Units:
    """The units of the ids first … last, both included, in blocks of `size`.

    Raises ValueError unless 0 <= first <= last < 2**56 and size >= 1.
    """

    first: int
    last: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < 2**56:
            raise ValueError(
                "fastdiff.jobs: expected ids A-B with 0 <= A <= B < 2**56, got"
                f" {self.first}-{self.last}."
            )
        if self.size < 1:
            raise ValueError(
                f"fastdiff.jobs: expected a unit of at least one sample, got {self.size}."
            )

    @property
    def numbers(self) -> range:
        """The units' numbers."""
        return range(self.first // self.size, self.last // self.size + 1)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def samples(self) -> int:
        return self.last - self.first + 1

    @property
    def computed(self) -> int:
        """The number of samples of all units, with those outside the run."""
        return len(self) * self.size

    def ids(self, unit: int) -> range:
        """Returns the sample ids of a unit that belong to the run."""
        block = self.block(unit)
        return range(max(block.start, self.first), min(block.stop, self.last + 1))

    def block(self, unit: int) -> range:
        """Returns all sample ids that are computed for a unit."""
        return range(unit * self.size, (unit + 1) * self.size)

    def unit_of(self, sample: int) -> int:
        """Returns the unit of a sample. Raises ValueError for ids outside the run."""
        if not self.first <= sample <= self.last:
            raise ValueError(
                f"fastdiff.jobs: expected ids within {self.first}-{self.last}, got {sample}."
            )
        return sample // self.size


def unit_order(
    units: Units,
    worker: int,
    world: int,
    finished: Callable[[int], bool],
    refresh: Callable[[], object] = lambda: None,
) -> Iterator[int]:
    """Yields the units that a worker should compute, one after another.

    Args:
        units: of the run.
        worker: number of the worker, 0 … world - 1.
        world: number of workers.
        finished: finished(unit) returns whether any worker has done the unit; called immediately
            before a unit is yielded.
        refresh: called once before the missing units are listed, so that `finished` can look up all
            units at once.

    The missing units are shuffled, so that idle workers seldom pick the same one. They must not be
    divided among the workers: the lists of two workers differ, since units finish between their
    checks, and with a stride over its own list each worker would skip units that no other takes.
    """
    if not 0 <= worker < world:
        raise ValueError(f"fastdiff.jobs: expected a worker in [0, {world}), got {worker}.")
    for unit in units.numbers:
        if unit % world == worker and not finished(unit):
            yield unit
    refresh()
    missing = [unit for unit in units.numbers if not finished(unit)]
    random.Random(f"{worker} of {world}").shuffle(missing)
    for unit in missing:
        if not finished(unit):
            yield unit
