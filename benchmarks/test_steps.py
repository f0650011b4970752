"""A step of every solver as a loop takes it: in place, with arguments checked and packed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import checks, harness, instructions, solvers, traffic
from benchmarks.tiers import row
from fastdiff import ops, reference

BATCHES = (1, 256)
COMMON = ("ddim", "ddpm", "dpm++2m", "unipc")
CASES = [
    row(
        (
            "quick"
            if (solver, batch) == ("dpm++2m", 1)
            else "default"
            if batch == 256 or solver in COMMON
            else "full"
        ),
        solver,
        batch,
        id=f"{solver}-{batch}",
    )
    for solver in solvers.PEERS
    for batch in BATCHES
]
SEED = 1


def step(
    solver: str, shape: tuple[int, ...], device: str, *, peer: bool = True
) -> tuple[harness.Workload, Any]:
    """Returns (a row in the middle of the plan that calls the network, (plan, row, peer)).

    peer: diffusers' step, or None if it is not requested.
    """
    g = torch.Generator(device).manual_seed(0)
    x, out = (torch.randn(shape, generator=g, device=device) for _ in range(2))
    plan = solvers.sampler(solver, out).plan
    k = middle(plan)
    slots = torch.randn(max(plan.slots, 1), *shape, generator=g, device=device)
    state, slots_in_place = x.clone(), slots.clone()
    rows = torch.full((shape[0],), k, device=device)
    following, ids = torch.empty_like(rows), torch.arange(shape[0], device=device)
    bound = ops.StepArguments(
        state,
        out,
        torch.tensor(plan.table, device=device),
        rows,
        slots=slots_in_place,
        seed=SEED,
        sample_ids=ids,
        used=plan.used,
        out=state,
        slots_out=slots_in_place,
    ).bind("model_output", "row", "row_out")

    def restore() -> None:
        state.copy_(x)
        slots_in_place.copy_(slots)

    def check(_: Any) -> None:
        b = checks.first_and_last(shape[0])
        expected = reference.reverse_step(
            checks.as_numpy(x[b]),
            checks.as_numpy(out[b]),
            plan.table,
            k,
            slots=checks.as_numpy(slots[:, b]),
            seed=SEED,
            sample_ids=np.array(b),
        )
        checks.same_bits(state[b], expected.x_s, "step")
        assert expected.slots is not None
        checks.same_bits(slots_in_place[:, b], expected.slots, "step's slots")
        assert (following == int(plan.column("next")[k])).all(), "the next row is the plan's"

    work = harness.Workload(
        lambda: bound(out, rows, following), check, "bits equal to NumPy", (following,), restore
    )
    called = int(plan.column("network")[:k].sum())
    return work, (plan, k, solvers.diffusers_step(solver, x, out, called) if peer else None)


def middle(plan: Any) -> int:
    """Returns the middle one of the rows that call the network."""
    calling = np.flatnonzero(plan.column("network"))
    return int(calling[len(calling) // 2])


@pytest.mark.parametrize("solver, batch", CASES)
def test_step(
    measured: Callable[..., Any], setting: harness.Setting, solver: str, batch: int
) -> None:
    shape = (batch, 3, 32, 32)
    work, (plan, k, theirs) = step(solver, shape, setting.device)
    elements = batch * 3 * 32 * 32

    def small(n: int) -> Callable[[], Any]:
        return step(solver, (1, n), setting.device, peer=False)[0].call

    launch = instructions.launch_of(
        "reverse_step", torch.empty(shape, device=setting.device), plan.used
    )
    noisy = any(
        plan.table[k, plan.columns.index(f"{to}.z")] for to in ("x", "s1", "s2", "s3", "s4")
    )
    measured(
        work,
        kind="step",
        what=f"step {solver}",
        peers={"diffusers": theirs},
        elements=elements,
        case={"solver": solver, "dtype": "float32", "shape": list(shape), "batch": batch},
        bytes_floor=4 * elements * traffic.arrays(plan, k),
        instructions=(
            (lambda: instructions.ceiling(small, setting.device, launch))
            if noisy and batch > 1
            else None
        ),
    )
