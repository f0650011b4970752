"""Units and the order in which workers take them, simulated: all are made, few of them twice."""

from __future__ import annotations

import heapq
import random

import pytest

from fastdiff.jobs.units import Units, unit_order


def test_units_are_blocks_of_the_id_line() -> None:
    units = Units(100, 299, 64)
    assert list(units.numbers) == [1, 2, 3, 4] and len(units) == 4 and units.samples == 200
    assert units.computed == 256
    assert units.ids(1) == range(100, 128) and units.block(1) == range(64, 128)
    assert units.ids(4) == range(256, 300) and units.block(4) == range(256, 320)
    assert [i for u in units.numbers for i in units.ids(u)] == list(range(100, 300))
    assert units.unit_of(100) == 1 and units.unit_of(299) == 4
    # a sample's block does not depend on where its run begins or ends
    assert Units(0, 10**6, 64).block(3) == units.block(3)
    assert Units(5, 5, 1).ids(5) == range(5, 6)


@pytest.mark.parametrize("first, last, size", [(1, 0, 64), (-1, 5, 64), (0, 2**56, 64), (0, 9, 0)])
def test_units_that_are_none(first: int, last: int, size: int) -> None:
    with pytest.raises(ValueError, match="fastdiff.jobs: expected"):
        Units(first, last, size)
    with pytest.raises(ValueError, match="expected ids within 0-9, got 10"):
        Units(0, 9, 4).unit_of(10)
    with pytest.raises(ValueError, match=r"expected a worker in \[0, 2\), got 2"):
        next(unit_order(Units(0, 9, 4), 2, 2, lambda unit: False))


def simulate(
    count: int, seconds: list[float], die: dict[int, float] | None = None
) -> tuple[list[int], set[int]]:
    """Simulates workers that take `seconds` per unit.

    Returns (every computed unit, in order of its end; the units done).
    """
    units = Units(0, count - 1, 1)
    done: set[int] = set()
    computed: list[int] = []
    workers = [unit_order(units, i, len(seconds), done.__contains__) for i in range(len(seconds))]
    events: list[tuple[float, int, int]] = []

    def start(worker: int, now: float) -> None:
        unit = next(workers[worker], None)
        if unit is not None:
            heapq.heappush(events, (now + seconds[worker], worker, unit))

    for worker in range(len(seconds)):
        start(worker, 0.0)
    while events:
        now, worker, unit = heapq.heappop(events)
        if die is not None and now > die.get(worker, float("inf")):
            continue  # it did not write this one
        computed.append(unit)
        done.add(unit)
        start(worker, now)
    return computed, done


def test_alone_every_unit_once_in_order() -> None:
    assert simulate(50, [1.0])[0] == list(range(50))


@pytest.mark.parametrize("count", [400, 1000])
def test_one_slow_worker_of_eight_makes_few_units_twice(count: int) -> None:
    """One of 8 workers is 4 times slower: at most 10 % of the units are computed twice."""
    speeds = [1.0 + 0.01 * i for i in range(7)] + [4.0]
    computed, done = simulate(count, speeds)
    assert len(done) == count
    assert len(computed) - count <= 0.10 * count, f"{len(computed) - count} of {count} twice"


def test_finished_units_are_listed_once() -> None:
    """Finished units are listed once; then only missing units are looked up one by one."""
    units, done, asked, refreshes = Units(0, 999, 1), set[int](), [], []

    def finished(unit: int) -> bool:
        if unit not in done:
            asked.append(unit)
        return unit in done

    def refresh() -> None:
        refreshes.append(len(asked))
        done.update(range(0, 990))

    order = list(unit_order(units, 1, 4, finished, refresh))
    assert order[:250] == list(range(1, 1000, 4)) and refreshes == [250], (
        "not before its own units are through"
    )
    assert sorted(order[250:]) == list(range(990, 1000)) and len(asked) == 250 + 2 * 10


def test_workers_that_die_leave_nothing_undone() -> None:
    draw = random.Random(0)
    for _ in range(20):
        speeds = [draw.uniform(0.5, 3) for _ in range(5)]
        die = {worker: draw.uniform(0, 30) for worker in range(4)}
        assert simulate(97, speeds, die)[1] == set(range(97))


def test_a_stride_over_missing_units_would_lose_some() -> None:
    """Two workers that each take every second of the units that *they* find missing lose units."""
    units = Units(0, 9, 1)
    done: set[int] = set()
    early = [u for u in units.numbers if u not in done][0::2]  # 0 2 4 6 8
    done |= {0, 2}  # the first worker has made progress when the second lists the missing units
    late = [u for u in units.numbers if u not in done][1::2]  # of 1 3 4 5 …: 3 5 7 9
    assert set(early) | set(late) != set(units.numbers), (
        "the stride covers all after all: the trap is none"
    )
    # the order in use, with the same late listing
    done = set()
    first, second = (
        unit_order(units, 0, 2, done.__contains__),
        unit_order(units, 1, 2, done.__contains__),
    )
    for unit in (next(first), next(first)):
        done.add(unit)
    for worker in (second, first):
        for unit in worker:
            done.add(unit)
    assert done == set(units.numbers)


def test_the_sweep_is_each_workers_own() -> None:
    units = Units(0, 99, 1)
    orders = []
    for worker in range(4):
        order = list(unit_order(units, worker, 4, lambda unit: unit % 4 == 0))
        assert set(order) == {u for u in units.numbers if u % 4}, "all missing units, of any worker"
        orders.append(tuple(order))
    assert len(set(orders)) == 4 and list(unit_order(units, 1, 4, lambda u: u % 4 == 0)) == list(
        orders[1]
    ), "and it repeats"
