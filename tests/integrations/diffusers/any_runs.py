"""Runs of pipelines with `fastdiff.Scheduler`, compared with `Sampler` step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from any_pipelines import drawn, made

import fastdiff


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
