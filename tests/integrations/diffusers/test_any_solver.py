"""`fastdiff.Scheduler`: every solver and grid inside pipelines of every family.

The pipeline's states are compared with those of `Sampler`, which runs the same plan in its own loop
on a network that replays the pipeline's outputs and checks what it is given.

The whole table of families, solvers and grids runs with FASTDIFF_TEST_ALL=1; otherwise a part of it
does, another part every day.
"""

from __future__ import annotations

import datetime
import os
import random
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.grids import SPACINGS

pytest.importorskip("transformers", reason="diffusers' text-to-image pipelines import transformers")
from any_pipelines import FAMILIES, drawn, made  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ALL = os.environ.get("FASTDIFF_TEST_ALL") == "1"
TODAY = random.Random(datetime.date.today().toordinal())


def part(cases: list[Any], count: int) -> list[Any]:
    """All cases, or `count` of them that depend on the day."""
    return cases if ALL or len(cases) <= count else sorted(TODAY.sample(cases, count))


class Step(NamedTuple):
    """What a pipeline passed to a step, and what it got."""

    output: torch.Tensor
    t: torch.Tensor
    sample: torch.Tensor
    result: torch.Tensor


def recorded(scheduler: Any) -> list[Step]:
    """The steps that a scheduler takes from now on."""
    steps: list[Step] = []
    inner = scheduler.step

    def step(output: Any, t: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        result = inner(output, t, sample, *args, **kwargs)
        steps.append(Step(output.clone(), t.clone(), sample.clone(), result[0].clone()))
        return result

    scheduler.step = step
    return steps


def check_steps(scheduler: Any, steps: list[Step]) -> None:
    """Compares a pipeline's run with that of `Sampler`, given the same outputs, step by step.

    Where a pipeline edits the state between steps (inpainting), so does the callback here.
    """
    state, run = scheduler._state, scheduler._run
    plan = scheduler._entered(run, state.history_start).plan
    rows = np.flatnonzero(plan.column("network")).tolist()
    scales = plan.column("input_scale")[rows]
    left = list(range(len(steps)))

    def replay(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        call = left.pop(0)
        assert float(t[0]) == pytest.approx(float(steps[call].t), rel=1e-6, abs=1e-6)
        if call or not rows[0]:  # rows before the first call change the state
            close(x, steps[call].sample * scales[call])
        return steps[call].output[:, : x.shape[1]]

    def edit(row: int, t: Any, x: torch.Tensor, x0: Any) -> None:
        if row in rows:
            call = rows.index(row)
            close(x, steps[call].result)
            if call + 1 < len(steps):
                x.copy_(steps[call + 1].sample)

    sampler = fastdiff.Sampler(replay, plan=plan)
    sampler.sample(x_T=steps[0].sample, seed=state.seed or 0, callback=edit)
    assert not left


def close(got: torch.Tensor, wanted: torch.Tensor, most: float = 1e-5) -> None:
    assert (got - wanted).abs().max() <= most * wanted.abs().max().clamp(min=1)


def check(family: str, scheduler: Any, **call: Any) -> None:
    """Runs a pipeline with a scheduler, and compares its states with those of `Sampler`."""
    pipe = made(family)
    pipe.scheduler = scheduler
    steps = recorded(scheduler)
    torch.manual_seed(0)
    out = drawn(pipe, family, **call)
    assert out.isfinite().all() and len(steps) > 1
    check_steps(scheduler, steps)


def scheduler_for(family: str, solver: str, grid: str | None, **options: Any) -> Any:
    return fastdiff.Scheduler.like(made(family).scheduler, solver=solver, grid=grid, **options)


REFUSED = "expected (a start with some data|a schedule with a largest noise level|options and poin)"
BEGINS = "expected a run to begin where a step"
TABLE = [(family, solver, "trailing") for family in FAMILIES for solver in SOLVERS]
GRIDS = [(family, "dpm++2m", grid) for family in FAMILIES for grid in SPACINGS]
OWN = [(family, solver, None) for family in FAMILIES for solver in ("ddim", "heun", "unipc")]


@pytest.mark.parametrize(
    "family, solver, grid", part(TABLE, 14) + part(GRIDS, 6) + part([*map(tuple, OWN)], 6)
)
def test_a_pipeline_takes_the_steps_of_the_sampler(
    family: str, solver: str, grid: str | None
) -> None:
    try:
        scheduler = scheduler_for(family, solver, grid)
        check(family, scheduler)
    except ValueError as error:
        # undefined at pure noise, or begun in the middle of a step
        inside = BEGINS in str(error) and FAMILIES[family].begins_inside
        assert inside or re.search(REFUSED, str(error)), error
