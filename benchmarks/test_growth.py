"""How time and memory grow with batch, steps and workers: the exponent of a fitted power.

The points span three decades. The exponent is fitted by least squares of the logarithms over the
last decade, with its standard error, because constant costs (the set-up of a run) dominate the
first one. Workers are processes that share a job: 1, 2, 4 … up to the number of processors. The
time per image falls with an exponent of -1 where they do not slow each other down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import harness, jobs, memory, solvers, traffic
from benchmarks.tiers import row
from fastdiff.backend.hardware import usable_cpus

FEW, MANY = [1, 10, 100, 1000], [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
SHAPE, STEPS = (3, 32, 32), 10
SEED = 1


def loop(batch: int, steps: int, device: str) -> tuple[harness.Workload, Any]:
    """Returns (a DDIM loop around a network that costs nothing, its plan)."""
    g = torch.Generator(device).manual_seed(0)
    out, start = (torch.randn(batch, *SHAPE, generator=g, device=device) for _ in range(2))
    sampler = solvers.sampler("ddim", out, steps)
    check = solvers.check_loop(sampler.plan, start, out, SEED)
    return (
        harness.Workload(
            lambda: sampler.sample(x_T=start, seed=SEED), check, "bits equal to NumPy"
        ),
        sampler.plan,
    )


@pytest.mark.parametrize(
    "over, points",
    [
        row("quick", "batch", FEW, id="batch-few"),
        row("default", "batch", MANY, id="batch"),
        row("default", "steps", MANY, id="steps"),
    ],
)
def test_growth(
    benchmark: Any,
    setting: harness.Setting,
    report_row: Callable[..., None],
    over: str,
    points: list[int],
) -> None:
    made = {x: loop(*((x, STEPS) if over == "batch" else (1, x)), setting.device) for x in points}
    for x, (work, _) in made.items():
        if x != points[-1]:  # the last one is checked by `measure`
            work.verify()
    times = harness.take_turns({str(x): work.call for x, (work, _) in made.items()}, setting)
    allocated = [memory.extra_bytes(work.call, setting.device) for work, _ in made.values()]
    work, plan = made[points[-1]]
    batch, steps = (points[-1], STEPS) if over == "batch" else (1, points[-1])
    elements = batch * 3 * 32 * 32
    found = harness.measure(
        setting,
        work,
        kind="growth",
        what=f"growth over {over}",
        peers={},
        elements=elements * steps,
        case={
            "solver": "ddim",
            "batch": batch,
            "steps": steps,
            "shape": [batch, *SHAPE],
            "over": over,
        },
        bytes_floor=4 * elements * traffic.of_run(plan),
    )
    found["growth"] = growth(
        over, points, [1e6 * harness.spread(times[str(x)])[1] for x in points], allocated
    )
    report_row(benchmark, found, work.call)


def growth(
    over: str, x: list[int], us: list[float], allocated: list[int] | None = None
) -> dict[str, Any]:
    """Returns the entry `growth` of a row. Bytes that are 0 somewhere have no exponent."""
    last = [i for i, v in enumerate(x) if 10 * v >= x[-1]]

    def fitted(y: list[float]) -> tuple[float, float]:
        return harness.fitted([float(x[i]) for i in last], [float(y[i]) for i in last])

    exponent, error = fitted(us)
    found: dict[str, Any] = {
        "over": over,
        "x": x,
        "us": [round(v, 2) for v in us],
        "exponent": round(exponent, 3),
        "error": round(error, 3),
        "bytes": allocated,
        "bytes_exponent": None,
        "bytes_error": None,
    }
    if allocated is not None and all(v > 0 for v in allocated):
        exponent, error = fitted([float(v) for v in allocated])
        found |= {"bytes_exponent": round(exponent, 3), "bytes_error": round(error, 3)}
    return found


@pytest.mark.parametrize("samples", [row("default", 512), row("full", 4096)])
def test_workers(
    benchmark: Any, setting: harness.Setting, report_row: Callable[..., None], samples: int
) -> None:
    """Microseconds per image while all workers of a job work, without their start-up."""
    counts = [2**k for k in range(11) if 2**k <= usable_cpus()] or [1]
    begin = time.perf_counter()
    speeds = jobs.speeds(
        counts, samples, steps=1, unit=32, rounds=1 if setting.tier != "full" else 2
    )
    took = time.perf_counter() - begin
    us = {n: [1e6 / v for v in speeds[n]] for n in counts}
    low, middle, high = harness.spread(us[counts[-1]])
    found = {
        "schema": harness.SCHEMA,
        "kind": "growth",
        "what": "growth over workers",
        "case": {
            "network": "fashion-mnist",
            "workers": counts[-1],
            "samples": samples,
            "steps": 1,
            "batch": 32,
        },
        "device": "cpu",
        "backend": "cpu",
        "threads": 1,
        "cache": "warm",
        "per": "image",
        "us": [round(v, 2) for v in (low, middle, high)],
        "rounds": len(us[counts[-1]]),
        "elements": None,
        "bytes_floor": None,
        "GB_per_s": None,
        "copy_GB_per_s": round(memory.copy_bandwidth() / 1e9, 3),
        "percent_of_copy": None,
        "instructions": None,
        "peers": {},
        "best_peer": None,
        "compile_s": None,
        "extra_bytes": None,
        "checked": "every worker's exit and every unit's event",
        "growth": growth("workers", counts, [harness.spread(us[n])[1] for n in counts]),
        "seconds": round(took, 1),
    }
    report_row(benchmark, found, lambda: None)
