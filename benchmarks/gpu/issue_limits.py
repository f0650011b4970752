"""What an H200 can reach of a copy's bandwidth if a kernel's instructions are the limit.

A multiprocessor issues four warp instructions a clock. So n instructions and m bytes an element
allow at most m/n * 32 * 4 * multiprocessors * clock bytes a second. The counts are in
instructions.json; `python -m benchmarks.gpu.count_instructions` writes it from the machine code.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("instructions.json")
MULTIPROCESSORS, CLOCK_HZ, COPY_BYTES_PER_S = 132, 1.98e9, 4.3e12  # an H200's, the copy measured
DTYPES = ("float32", "bfloat16")


@functools.cache
def table() -> dict[str, Any]:
    """Returns {kernel: {dtype: {instructions, bytes, ceiling}}}."""
    kernels: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["kernels"]
    return kernels


def ceiling(instructions: float, nbytes: float) -> float:
    """Returns the limit in percent of a copy's bandwidth, from counts an element."""
    rate = 4 * 32 * MULTIPROCESSORS * CLOCK_HZ / instructions
    return 100 * rate * nbytes / COPY_BYTES_PER_S


def require(kernel: str, dtype: str, percent: float) -> None:
    """Raises ValueError for a target above the kernel's own ceiling, KeyError without an entry."""
    limit = float(table()[kernel][dtype]["ceiling"])
    if percent > limit:
        raise ValueError(
            f"{kernel}, {dtype}: expected a target of at most {limit:g} % of a copy's bandwidth,"
            f" which its instructions allow, got {percent:g}; lower the instructions or the target."
        )


def reachable(kernel: str, dtype: str, memory: float, share: float = 0.9) -> float:
    """Returns the percent of a copy's bandwidth that a kernel is predicted to reach.

    Args:
        memory: what it would reach if instructions were free.
        share: of the issue slots that a kernel without waits can use.

    Raises:
        KeyError: the table doesn't have the kernel.
    """
    percent = min(memory, round(share * float(table()[kernel][dtype]["ceiling"])))
    require(kernel, dtype, percent)
    return percent
