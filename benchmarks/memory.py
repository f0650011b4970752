"""Memory: the bandwidth of copy and fill, emptying the caches, and the bytes that a call allocates.

All of it is measured on the row's device with the row's number of threads.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LARGE = 64 * 2**20  # bytes: source and destination do not both fit a CPU's cache
MOST = 32 * LARGE  # bytes that do not fit a GPU's cache
_SHORTEST, _LONGEST = 2e-4, 5e-3  # seconds that a GPU is kept busy before a measured call
_CYCLES_PER_SECOND = 2e9  # more than any GPU's clock


@functools.cache
def last_level_cache(device: str) -> int:
    """Returns the bytes of the largest cache."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [32 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 1))
    return min(max(sizes), 512 * 2**20)


@functools.cache
def _buffer(nbytes: int, device: str, name: str) -> torch.Tensor:
    return torch.ones(nbytes // 4, device=device)


def evict(device: str) -> None:
    """Empties every cache by writing twice the size of the last one."""
    _buffer(2 * last_level_cache(device), device, "evict").add_(1.0)


class Stopwatch:
    """A clock, which calls a function and returns its seconds.

    On a CPU that is wall time. On a GPU it is the time between events before and after the call's
    kernels. The GPU is kept busy while the host prepares and starts them, because on an idle GPU
    the time between the events is that of the host.

    Attributes:
        host: seconds after which the latest call returned, on a GPU those of the host alone.
    """

    def __init__(self, device: str):
        self._gpu, self.host = device == "cuda", 0.0
        self._busy = _SHORTEST

    def __call__(self, call: Callable[[], Any]) -> float:
        if not self._gpu:
            begin = time.perf_counter()
            call()
            self.host = time.perf_counter() - begin
            return self.host
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(self._busy * _CYCLES_PER_SECOND))
        start.record()
        begin = time.perf_counter()
        call()
        self.host = time.perf_counter() - begin
        end.record()
        end.synchronize()
        # The next call of this kind finds the GPU busy for long enough. A call that waits for the
        # device never would: the longest wait is limited.
        self._busy = min(_LONGEST, max(self._busy, 2 * self.host))
        return start.elapsed_time(end) / 1e3


def stopwatch(device: str) -> Stopwatch:
    """Returns a clock for calls on `cpu` or `cuda`."""
    return Stopwatch(device)


def _rate(call: Callable[[], Any], nbytes: int, device: str, cold: bool, rounds: int) -> float:
    clock, times = stopwatch(device), []
    call()
    for _ in range(rounds):
        if cold:
            evict(device)
        times.append(clock(call))
    return nbytes / statistics.median(times)


def copy_bandwidth(
    device: str = "cpu", nbytes: int = MOST, *, cold: bool = False, rounds: int = 7
) -> float:
    """Returns the bytes read and written per second by a plain copy that moves `nbytes` bytes.

    The copy's size is limited to 1 MiB to 64 MiB each way, up to 1 GiB on a GPU, where 64 MiB may
    fit the last cache.
    """
    half = min(max(nbytes // 2, 2**20), LARGE if device == "cpu" else 16 * LARGE)
    source, target = _buffer(half, device, "source"), _buffer(half, device, "target")
    return _rate(lambda: target.copy_(source), 2 * half, device, cold, rounds)


def fill_bandwidth(device: str = "cpu", nbytes: int = LARGE, rounds: int = 7) -> float:
    """Returns the bytes written per second by a plain fill."""
    target = _buffer(nbytes, device, "target")
    return _rate(lambda: target.fill_(1.0), nbytes, device, False, rounds)


def extra_bytes(call: Callable[[], Any], device: str) -> int:
    """Returns the most bytes that a call has allocated at a time, by torch's allocator.

    `call` must have run before. On a CPU, the profiler's allocations are summed in order; memory
    that libraries take from the system is not included.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        held = call()
    del held
    result = record.profiler.kineto_results  # type: ignore[union-attr]
    events = [(e.start_ns(), e.nbytes()) for e in result.events() if e.name() == "[memory]"]
    now = most = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        now += nbytes
        most = max(most, now)
    return most
