"""A seed for each of 256 samples: a tensor in fastdiff, a list of generators in diffusers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import checks, harness, peers, solvers
from benchmarks.tiers import row
from fastdiff import ops, reference

SHAPE = (256, 3, 32, 32)
ELEMENTS = 256 * 3 * 32 * 32


@pytest.mark.parametrize("what", [row("default", "randn"), row("quick", "step ddpm")])
def test_seeds(measured: Callable[..., Any], setting: harness.Setting, what: str) -> None:
    device = setting.device
    seeds = torch.arange(256, device=device) * 2**33 + 5
    generators = [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]
    module, picked = peers.diffusers(), checks.first_and_last(256)
    numpy_seeds = seeds[picked].cpu().numpy()
    if what == "randn":
        out = torch.empty(SHAPE, device=device)

        def check(_: Any) -> None:
            expected = reference.randn((2, *SHAPE[1:]), seed=numpy_seeds, sample_ids=picked)
            checks.same_bits(out[picked], expected, what)

        def call(seed: Any) -> Any:
            return ops.randn(SHAPE, seed=seed, out=out)

        work = harness.Workload(lambda: call(seeds), check, "bits equal to NumPy", (out,))
        if isinstance(module, peers.Missing):
            theirs: Any = module
        else:
            draw = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
            theirs = lambda: draw(SHAPE, generator=generators, device=torch.device(device))  # noqa: E731
        floor = 4 * ELEMENTS
    else:
        x, out = torch.randn(SHAPE, device=device), torch.randn(SHAPE, device=device)
        state, k = x.clone(), 25
        plan = solvers.sampler("ddpm", out).plan
        table, rows = torch.tensor(plan.table, device=device), torch.full((256,), k, device=device)

        def check(_: Any) -> None:
            b = picked
            expected = reference.reverse_step(
                checks.as_numpy(x[b]),
                checks.as_numpy(out[b]),
                plan.table,
                k,
                seed=numpy_seeds,
                sample_ids=np.array(b),
            )
            checks.same_bits(state[b], expected.x_s, what)

        ids = torch.arange(256, device=device)

        def call(seed: Any) -> Any:
            return ops.reverse_step(
                state, out, table, rows, seed=seed, sample_ids=ids, used=plan.used, out=state
            )

        work = harness.Workload(
            lambda: call(seeds), check, "bits equal to NumPy", restore=lambda: state.copy_(x)
        )
        scheduler = solvers.scheduler("ddpm", device)
        theirs = scheduler
        if not isinstance(scheduler, peers.Missing):
            t = scheduler.timesteps[k]
            theirs = lambda: scheduler.step(out, t, x, generator=generators)  # noqa: E731
        floor = 12 * ELEMENTS
    measured(
        work,
        kind="seeds",
        what=f"a seed a sample, {what}",
        elements=ELEMENTS,
        bytes_floor=floor,
        case={"dtype": "float32", "shape": list(SHAPE), "batch": 256},
        peers={"diffusers": theirs, "fastdiff, one seed": lambda: call(1)},
    )
