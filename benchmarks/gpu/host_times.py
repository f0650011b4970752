"""Measures the host's time of launches of Triton kernels, on a machine without a GPU.

    python -m benchmarks.gpu.host_times

It prints microseconds of a thread's time for a call, the median of interleaved blocks of calls and
in brackets the lowest block. The kernels are compiled for an H200 and pass through Triton's
launcher in C; below it a stub takes the place of the CUDA driver (stub_driver.py). So what a real
driver needs for a launch, about 2 µs, is left out.

The columns are ways to execute one row of a plan:

    triton    kernel[grid](...) for every launch, as before the short way
    unbound   the launcher of the op
    bound     the launcher of a bound step
    op        ops.reverse_step with all its checks
    step      a bound step as the sampling loop calls it
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from fastdiff_kernels import launch

import fastdiff
from benchmarks.gpu import stub_driver
from fastdiff import ops
from fastdiff.ops.step import StepArguments, workspace_for
from fastdiff.table import COLUMNS, columns

BLOCK, BLOCKS = 50, 41
SHAPE = (4, 3, 32, 32)
DDIM = columns("network", "input_scale", "x0_x", "x0_out", "clip_mode", "next", "x.x", "x.x0")
DDPM = DDIM | columns("noise_index", "x.z")
CASES: dict[str, dict[str, Any]] = {
    "DDIM fp32": {"used": DDIM},
    "DDPM fp32": {"used": DDPM},
    "DDPM bf16": {"used": DDPM, "dtype": torch.bfloat16},
    "DDPM fp32, guided": {"used": DDPM, "halves": 2},
    "DPM++ 2M fp32": {"used": DDIM | columns("x.s1", "s1.x0"), "slots": 1},
    "DDPM fp32, guided, two prepasses": {
        "used": DDPM | columns("guidance_rescale", "clip_ratio"),
        "halves": 2,
    },
}


def arguments(
    used: int, dtype: torch.dtype = torch.float32, halves: int = 1, slots: int = 0
) -> StepArguments:
    """Returns the arguments of a step as the sampling loop has them."""
    x, row = torch.zeros(SHAPE, dtype=dtype), torch.zeros(SHAPE[0], dtype=torch.int64)
    batch = SHAPE[0]
    memory = torch.zeros(slots, *SHAPE) if slots else None
    return StepArguments(
        x,
        torch.zeros(halves * batch, *SHAPE[1:], dtype=dtype),
        torch.zeros(10, len(COLUMNS), dtype=torch.float64),
        row,
        slots=memory,
        seed=5,
        guidance=torch.ones(batch) if halves == 2 else None,
        used=used,
        out=x,
        slots_out=memory,
        input_out=torch.zeros(halves * batch, *SHAPE[1:], dtype=dtype),
        row_out=row.clone(),
        workspace=workspace_for(x),
    ).check()


def ways(step: StepArguments) -> dict[str, Callable[[], Any]]:
    """Returns the ways to execute a step."""
    names = ("model_output", "row", "row_out")
    values = tuple(getattr(step, name) for name in names)
    bound = launch.BINDERS["reverse_step"](step, names, False)[0]
    loop = step.bind(*names)

    def by_triton() -> None:
        for call in launch.reverse_step_calls(step):
            call.kernel()[call.grid](**call.arguments, **call.options)

    given = step._asdict()
    return {
        "triton": by_triton,
        "unbound": lambda: launch.reverse_step(step),
        "bound": lambda: bound(values),
        "op": lambda: ops.reverse_step(**given),
        "step": lambda: loop(*values),
    }


def measured(work: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Returns the µs of a call in each block, for each way."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
        call()
    for _ in range(BLOCKS):
        for name, call in work.items():
            start = time.thread_time_ns()
            for _ in range(BLOCK):
                call()
            times[name].append((time.thread_time_ns() - start) / BLOCK / 1e3)
    return times


def main() -> int:
    torch.set_num_threads(1)
    print(f"Triton {triton.__version__}, torch {torch.__version__}: host µs of a launch")
    with tempfile.TemporaryDirectory() as folder, stub_driver.installed(Path(folder)):
        with fastdiff.use("triton"):
            for case, options in CASES.items():
                print(case)
                for name, times in measured(ways(arguments(**options))).items():
                    print(f"  {name:8} {statistics.median(times):6.1f} [{min(times):.1f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
