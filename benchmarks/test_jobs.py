"""A batch job compared with the bare loop that draws the same images: the cost of hashing, encoding
and fsync.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import harness, jobs
from benchmarks.tiers import row
from fastdiff import jobs as package
from fastdiff.jobs import machine


@pytest.mark.parametrize(
    "samples, steps",
    [
        row("quick", 64, 1, id="64-1"),
        row("default", 128, 1, id="128-1"),
        row("full", 8192, 5, id="8192-5"),
    ],
)
def test_job(
    measured: Callable[..., Any], setting: harness.Setting, samples: int, steps: int
) -> None:
    unit = min(64, samples // 2)
    job = package.Job.plan(
        "fashion-mnist",
        ids=(0, samples - 1),
        unit=unit,
        steps=steps,
        guidance_scale=1.0,
        solver="ddim",
        device=setting.device,
    )
    units = list(range(len(job.spec.units)))

    def whole() -> dict[int, Any]:
        with tempfile.TemporaryDirectory() as out, machine.settled(job.spec.threads):
            return {int(done.ids[0]): done.array for done in package.finished(job, out)}

    def bare() -> dict[int, Any]:
        with machine.settled(job.spec.threads):
            return dict(
                zip(
                    (job.spec.units.block(u).start for u in units),
                    jobs.bare(job, units),
                    strict=True,
                )
            )

    def check(made: dict[int, Any]) -> None:
        expected = bare()
        assert made.keys() == expected.keys(), "every unit is there"
        for first, array in made.items():
            if not torch.equal(torch.as_tensor(array), torch.as_tensor(expected[first])):
                raise AssertionError(
                    f"the unit from sample {first} on has other images than the bare loop"
                )

    measured(
        harness.Workload(whole, check, "images equal to the bare loop's"),
        kind="job",
        what="job next to the bare loop",
        peers={"fastdiff, bare loop": bare},
        per="image",
        divide=samples,
        case={"network": "fashion-mnist", "samples": samples, "steps": steps, "batch": unit},
    )
