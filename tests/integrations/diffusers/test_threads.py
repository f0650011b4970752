"""One scheduler object used by several threads and asyncio tasks, with different step counts."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import network

import fastdiff

NAMES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
]
COUNTS = (5, 8, 13, 21)


def begin(steps: int) -> torch.Tensor:
    return fastdiff.randn((2, 3, 8, 8), seed=steps)


def one_step(
    scheduler: Any, x: torch.Tensor, t: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    out = network(scheduler.scale_model_input(x, t))
    takes = (
        {"generator": generator}
        if "DDPM" in type(scheduler).__name__ or "Ancestral" in type(scheduler).__name__
        else {}
    )
    return scheduler.step(out, t, x, **takes).prev_sample


def alone(name: str, steps: int) -> torch.Tensor:
    scheduler = getattr(fastdiff, name)()
    scheduler.set_timesteps(steps)
    x, generator = begin(steps), torch.Generator().manual_seed(steps)
    for t in scheduler.timesteps:
        x = one_step(scheduler, x, t, generator)
    return x


@pytest.mark.parametrize("name", NAMES)
def test_threads(name: str) -> None:
    scheduler = getattr(fastdiff, name)()
    meet = threading.Barrier(len(COUNTS))

    def run(steps: int) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        meet.wait()  # all have set theirs before any steps
        x, generator = begin(steps), torch.Generator().manual_seed(steps)
        for i, t in enumerate(scheduler.timesteps):
            x = one_step(scheduler, x, t, generator)
            if i < COUNTS[0]:
                meet.wait()  # steps interleave
        assert scheduler.num_inference_steps == steps
        return x

    with ThreadPoolExecutor(len(COUNTS)) as pool:
        results = list(pool.map(run, COUNTS))
    for steps, got in zip(COUNTS, results, strict=True):
        assert torch.equal(got, alone(name, steps))


@pytest.mark.parametrize("name", NAMES)
def test_tasks(name: str) -> None:
    scheduler = getattr(fastdiff, name)()
    scheduler.set_timesteps(4)  # tasks start with a copy of this context

    async def run(steps: int) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        await asyncio.sleep(0)
        x, generator = begin(steps), torch.Generator().manual_seed(steps)
        for t in scheduler.timesteps:
            x = one_step(scheduler, x, t, generator)
            await asyncio.sleep(0)
        return x

    async def together() -> list[torch.Tensor]:
        return await asyncio.gather(*(run(steps) for steps in COUNTS))

    for steps, got in zip(COUNTS, asyncio.run(together()), strict=True):
        assert torch.equal(got, alone(name, steps))
    assert scheduler.num_inference_steps == 4


def test_a_worker_that_never_set_timesteps_finds_the_last_state() -> None:
    scheduler = fastdiff.HeunDiscreteScheduler()
    scheduler.set_timesteps(5)

    def run() -> torch.Tensor:
        x, generator = begin(5), torch.Generator()
        for t in scheduler.timesteps:
            x = one_step(scheduler, x, t, generator)
        return x

    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(run).result(), alone("HeunDiscreteScheduler", 5))


def test_states_go_with_their_threads() -> None:
    scheduler = fastdiff.LMSDiscreteScheduler()
    scheduler.set_timesteps(4)
    for _ in range(3):
        thread = threading.Thread(target=scheduler.set_timesteps, args=(7,))
        thread.start()
        thread.join()
    scheduler.set_timesteps(4)
    gc.collect()
    assert len(scheduler._states._states) == 1
