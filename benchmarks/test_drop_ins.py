"""Times a pipeline's loop with fastdiff's drop-in of each scheduler, and with diffusers' class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import drop_ins, harness
from benchmarks.tiers import row

SHAPES = {"1x4x8x8": (1, 4, 8, 8), "256x3x32x32": (256, 3, 32, 32)}
COMMON = (
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
)
QUICK = ("FlowMatchEulerDiscreteScheduler", "1x4x8x8")
CASES = [
    row(
        "quick" if (name, shape) == QUICK else "default" if name in COMMON else "full",
        name,
        shape,
        id=f"{name.removesuffix('Scheduler')}-{shape}",
    )
    for name in drop_ins.NAMES
    for shape in SHAPES
]


@pytest.mark.parametrize("name, shape", CASES)
def test_drop_in(measured: Callable[..., Any], name: str, shape: str) -> None:
    size = SHAPES[shape]
    g = torch.Generator().manual_seed(0)
    start, out = (torch.randn(size, generator=g) for _ in range(2))
    work = harness.Workload(
        drop_ins.loop(name, start, out, mine=True),  # type: ignore[arg-type]
        drop_ins.check(name, start, out),
        drop_ins.checked(name),
    )
    measured(
        work,
        kind="pipeline",
        what=f"drop-in {name.removesuffix('Scheduler')}",
        peers={"diffusers": drop_ins.loop(name, start, out, mine=False)},
        case={"class": name, "shape": list(size), "batch": size[0], "steps": drop_ins.STEPS},
    )
