"""Ratios of times: arms interleaved in one process, medians with their spread.

An arm is a call that is measured in comparison with others. The speed of a machine drifts and other
processes disturb it, but two neighbouring measurements are affected alike. So the arms take turns,
A B … B A, and a ratio is the median of the ratios of neighbours, with its 20th and 80th percentile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Arm = Callable[[], Any]


def interleave(
    arms: Mapping[str, Arm],
    *,
    seconds: float = 2.0,
    rounds: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns the times of each arm in seconds, taken in the order A B … B A, round by round.

    Args:
        arms: each is called three times before it is measured.
        seconds, rounds: `rounds` defaults to as many as fit in `seconds`, from 7 to 2,000.
        clock: `time.thread_time` counts the processor time of a single thread, which other
            processes do not change.
    """
    for arm in arms.values():
        arm()
        arm()
    names = list(arms)
    begin = clock()
    for arm in arms.values():
        arm()
    once = clock() - begin
    rounds = rounds or max(7, min(2000, int(seconds / once / 2)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in (*names, *reversed(names)):
            arm = arms[name]
            begin = clock()
            arm()
            times[name].append(clock() - begin)
    return times


def spread(values: list[float]) -> tuple[float, float, float]:
    """Returns (20th percentile, median, 80th percentile)."""
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], statistics.median(values), cuts[3]


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Returns how many times faster `ours` is, as median with 20th and 80th percentile.

    The ratios are theirs / ours of neighbouring measurements.
    """
    low, middle, high = spread([b / a for a, b in zip(ours, theirs, strict=True)])
    return {"median": round(middle, 3), "p20": round(low, 3), "p80": round(high, 3)}
