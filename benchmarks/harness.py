"""Honest timing: arms interleaved in one process, medians with their spread, results checked before they are timed.

A row is fastdiff's time next to its peers' on the same inputs, as ratios; next to it stand the bytes an ideal kernel
would move and the copy bandwidth measured in the same run. Peers that are not installed are reported as missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastdiff.timing import Arm, interleave, ratio, spread

__all__ = ["Arm", "copy_bandwidth", "interleave", "ratio", "report", "spread"]


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
