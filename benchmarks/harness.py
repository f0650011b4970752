"""Honest timing: arms interleaved in one process, medians with their spread, results checked before they are timed.

A row is fastdiff's time next to its peers' on the same inputs, as ratios; next to it stand the bytes an ideal kernel
would move and the copy bandwidth measured in the same run. Peers that are not installed are reported as missing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Arm = Callable[[], Any]


def interleave(
    arms: Mapping[str, Arm],
    *,
    seconds: float = 2.0,
    rounds: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times of each arm in seconds, taken in the order A B … B A, round by round.

    Every arm is run twice first; `rounds` defaults to what fits the time, at least 7. With `time.thread_time` as the clock
    the processor's time of a single thread counts: other processes then take none of it.
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
    """(20th percentile, median, 80th percentile)."""
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], statistics.median(values), cuts[3]


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times faster we are, pair by pair of neighbouring measurements: median and 20th to 80th percentile."""
    low, middle, high = spread([b / a for a, b in zip(ours, theirs, strict=True)])
    return {"median": round(middle, 3), "p20": round(low, 3), "p80": round(high, 3)}


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes read and written per second by a plain copy of float32 tensors."""
    source = torch.randn(megabytes * 2**18)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, rounds=7)["copy"]
    return 2 * source.numel() * 4 / statistics.median(times)


def report(
    benchmark: Any, arms: Mapping[str, Arm], *, elements: int, bytes_floor: int, check: Callable[[], None]
) -> dict[str, Any]:
    """Checks, times all arms interleaved, and leaves the row in pytest-benchmark's extra_info.

    The first arm is ours and is also what pytest-benchmark times. `check` raises when a result is wrong: a wrong result
    is an error, not a time.
    """
    check()
    ours, *peers = arms
    times = interleave(arms)
    low, middle, high = spread(times[ours])
    copy = copy_bandwidth()
    row: dict[str, Any] = {
        "elements": elements,
        "threads": torch.get_num_threads(),
        "Melem_per_s": round(elements / middle / 1e6, 1),
        "us_p20_p50_p80": [round(1e6 * v, 2) for v in (low, middle, high)],
        "bytes_floor": bytes_floor,
        "GB_per_s": round(bytes_floor / middle / 1e9, 2),
        "copy_GB_per_s": round(copy / 1e9, 2),
        "faster_than": {peer: ratio(times[ours], times[peer]) for peer in peers},
    }
    benchmark.extra_info.update(row)
    benchmark.pedantic(arms[ours], rounds=10, warmup_rounds=1)
    shown = ", ".join(f"{v['median']:.2f}x [{v['p20']:.2f}, {v['p80']:.2f}] {k}" for k, v in row["faster_than"].items())
    print(f"\n{benchmark.name}: {row['Melem_per_s']} Melem/s, {row['GB_per_s']} GB/s; {shown or 'no peer installed'}")
    return row
