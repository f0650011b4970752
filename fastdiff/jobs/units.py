"""Units of work: fixed blocks of consecutive sample ids, and the order in which a worker takes
them.

Unit u of size B holds the ids [u B, (u + 1) B) that lie in the run, and is always computed as that
whole block: what is outside the run is computed too and cut off. A sample's batch is therefore a
function of its id, whatever the run.

Unit u is worker u mod world's. A worker takes its own in order, then whatever is still missing in
an order of its own, and looks before each unit whether somebody has finished it. `world` is thus a
hint that keeps workers apart, never a promise
that they exist: any subset of them, started at any time, finishes the run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Units:
    """The units of the ids first … last, both included, in blocks of `size`. Raises ValueError for
    numbers outside these.
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

    def ids(self, unit: int) -> range:
        """The sample ids of a unit that belong to the run."""
        block = self.block(unit)
        return range(max(block.start, self.first), min(block.stop, self.last + 1))

    def block(self, unit: int) -> range:
        """The sample ids that are computed for it."""
        return range(unit * self.size, (unit + 1) * self.size)

    def of(self, sample: int) -> int:
        """The unit of a sample. Raises ValueError for ids outside the run."""
        if not self.first <= sample <= self.last:
            raise ValueError(
                f"fastdiff.jobs: expected ids within {self.first}-{self.last}, got {sample}."
            )
        return sample // self.size


def turns(
    units: Units,
    worker: int,
    world: int,
    finished: Callable[[int], bool],
    look: Callable[[], object] = lambda: None,
) -> Iterator[int]:
    """The units that a worker should compute, one after another.

    finished(unit): whether it is done by now, by anybody; asked right before a unit is handed out.
    look(): takes note of all that is done, for `finished` to know; called before the sweep, which
    asks for every unit.

    The sweep shuffles the missing units, so that idle workers seldom pick the same one. It must not
        divide them: the lists
    of two workers differ, as units finish between their looks, and a stride over one's own list
    skips units that nobody else takes.
    """
    if not 0 <= worker < world:
        raise ValueError(f"fastdiff.jobs: expected a worker in [0, {world}), got {worker}.")
    for unit in units.numbers:
        if unit % world == worker and not finished(unit):
            yield unit
    look()
    missing = [unit for unit in units.numbers if not finished(unit)]
    random.Random(f"{worker} of {world}").shuffle(missing)
    for unit in missing:
        if not finished(unit):
            yield unit
