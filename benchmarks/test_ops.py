"""Every fused op next to what its users run instead: torch eager and diffusers' schedulers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from benchmarks import harness
from fastdiff import Schedule, ops, reference
from fastdiff.solvers import make_plan

SCHEDULE = Schedule.linear(1000)
BATCH = (256, 3, 32, 32)
ELEMENTS = 256 * 3 * 32 * 32


def _diffusers(name: str) -> Any:
    try:
        import diffusers
    except ImportError:
        return None
    return getattr(diffusers, name)(num_train_timesteps=1000, clip_sample=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_randn(benchmark: Any, dtype: torch.dtype) -> None:
    out, peer = torch.empty(BATCH, dtype=dtype), torch.empty(BATCH, dtype=dtype)

    def check() -> None:
        fastdiff.randn(BATCH, seed=1, out=out)
        expected = torch.from_numpy(reference.randn((2, *BATCH[1:]), seed=1)).to(dtype)
        assert torch.equal(out[:2], expected)

    harness.report(
        benchmark,
        {"fastdiff": lambda: fastdiff.randn(BATCH, seed=1, out=out), "torch.randn": lambda: peer.normal_()},
        elements=ELEMENTS,
        bytes_floor=ELEMENTS * out.element_size(),
        check=check,
    )


def test_q_sample(benchmark: Any) -> None:
    x0, t = torch.randn(BATCH), torch.arange(256) * 3
    alpha, sigma = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
    single_a, single_s = alpha.float(), sigma.float()
    out = torch.empty(BATCH)

    def check() -> None:
        fastdiff.q_sample(x0, t, alpha, sigma, seed=1, out=out)
        expected = reference.q_sample(x0[:2].numpy(), t[:2].numpy(), SCHEDULE.alpha, SCHEDULE.sigma, seed=1)
        assert np.array_equal(out[:2].numpy(), expected)

    def eager() -> torch.Tensor:
        shape = (-1, 1, 1, 1)
        return single_a[t].view(shape) * x0 + single_s[t].view(shape) * torch.randn_like(x0)

    arms = {"fastdiff": lambda: fastdiff.q_sample(x0, t, alpha, sigma, seed=1, out=out), "torch eager": eager}
    scheduler = _diffusers("DDPMScheduler")
    if scheduler is not None:
        arms["diffusers"] = lambda: scheduler.add_noise(x0, torch.randn_like(x0), t)
    harness.report(benchmark, arms, elements=ELEMENTS, bytes_floor=8 * ELEMENTS, check=check)


@pytest.mark.parametrize("shape", [BATCH, (1, 3, 32, 32)], ids=["256x3x32x32", "1x3x32x32"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_reverse_step(benchmark: Any, solver: str, shape: tuple[int, ...]) -> None:
    plan = make_plan(SCHEDULE, solver=solver, steps=50, timestep_spacing="leading")
    k, table, batch = 25, torch.tensor(plan.table), shape[0]
    x, model_output, out = torch.randn(shape), torch.randn(shape), torch.empty(shape)
    row, ids = torch.full((batch,), k), torch.arange(batch)

    def step() -> None:
        ops.reverse_step(x, model_output, table, row, seed=1, sample_ids=ids, used=plan.used, out=out)

    def check() -> None:
        step()
        expected = reference.reverse_step(x[:1].numpy(), model_output[:1].numpy(), plan.table, k, seed=1)
        assert np.array_equal(out[:1].numpy(), expected.x_s)

    arms: dict[str, harness.Arm] = {"fastdiff": step}
    scheduler = _diffusers("DDPMScheduler" if solver == "ddpm" else "DDIMScheduler")
    if scheduler is not None:
        scheduler.set_timesteps(50)
        t = scheduler.timesteps[k]
        arms["diffusers"] = lambda: scheduler.step(model_output, t, x)
    elements = x.numel()
    harness.report(benchmark, arms, elements=elements, bytes_floor=12 * elements, check=check)
