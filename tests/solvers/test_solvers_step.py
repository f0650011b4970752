"""A step of any solver is one launch without a host read, and has the same bits on every backend.

The launch counter tests `cpu`. The results over a full loop compare it and `torch` with the NumPy
interpreter of the table (`fastdiff.reference`). tests/backend/triton_interpreter/plans.py tests
Triton.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdiff import Schedule, ops, reference
from fastdiff.backend import library
from fastdiff.solvers import SOLVERS, Plan, make_plan

SCHEDULE = Schedule.scaled_linear(1000)
OPTIONS: list[tuple[str, dict[str, Any]]] = []
for _solver in SOLVERS.values():
    for _options in ({}, *(dict(c.options) for c in _solver.configurations)):
        if (_solver.name, _options) not in OPTIONS:
            OPTIONS.append((_solver.name, _options))
SHAPE = (3, 4, 5)


def plan_of(solver: str, options: dict[str, Any]) -> Plan:
    return make_plan(SCHEDULE, solver=solver, steps=7, clip_range=2.0, **options)


def network(x: Tensor, channels: int) -> Tensor:
    """A network of float32 additions and products, which NumPy and torch compute alike."""
    return (0.25 * x + 0.125).repeat(1, channels, 1)


def trajectory(plan: Plan, backend: str, channels: int) -> list[Tensor]:
    x, table = ops.randn(SHAPE, seed=1, backend="torch"), torch.tensor(plan.table)
    row, ids = torch.zeros(SHAPE[0], dtype=torch.int64), torch.tensor([5, 0, 2**40])
    slots = torch.full((4, *SHAPE), torch.nan)
    states = []
    for k in range(len(plan)):
        out = network(x, channels) if plan.column("network")[k] else None
        following, fresh = torch.empty_like(row), torch.empty_like(x)
        ops.reverse_step(
            x,
            out,
            table,
            row,
            seed=9,
            sample_ids=ids,
            slots=slots,
            used=plan.used,
            out=fresh,
            slots_out=slots,
            row_out=following,
            backend=backend,
        )
        x, row = fresh, following
        states.append(x)
    assert row.tolist() == [len(plan)] * SHAPE[0]
    return states


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "solver, options", OPTIONS, ids=[f"{n}{list(o.values()) or ''}" for n, o in OPTIONS]
)
def test_a_row_is_one_launch_and_the_same_everywhere(solver: str, options: dict[str, Any]) -> None:
    plan = plan_of(solver, options)
    channels = 2 if options.get("variance_type") == "learned_range" else 1
    expected, slots = reference.randn(SHAPE, seed=1), np.full((4, *SHAPE), np.nan, np.float32)
    states = []
    for k in range(len(plan)):
        out = (
            network(torch.from_numpy(expected), channels).numpy()
            if plan.column("network")[k]
            else None
        )
        ids = np.array([5, 0, 2**40])
        step = reference.reverse_step(
            expected, out, plan.table, k, slots=slots, seed=9, sample_ids=ids
        )
        expected, slots = step.x_s, step.slots
        states.append(torch.from_numpy(expected))
    assert states[-1].isfinite().all()
    for backend in ("torch", "cpu"):
        if backend == "cpu" and not library.available():
            pytest.skip(f"the C++ library is off: {library.reason()}")
        before = library.launches("reverse_step") if library.available() else 0
        got = trajectory(plan, backend, channels)
        if backend == "cpu":
            assert library.launches("reverse_step") - before == len(plan)
        for k, (a, b) in enumerate(zip(got, states, strict=True)):
            assert torch.equal(a, b), f"{backend}, row {k}"


@pytest.mark.parametrize(
    "solver, options", OPTIONS, ids=[f"{n}{list(o.values()) or ''}" for n, o in OPTIONS]
)
def test_a_row_reads_nothing_on_the_host(solver: str, options: dict[str, Any]) -> None:
    """Under FakeTensorMode any `.item()` or comparison of values in a wrapper raises."""
    plan = plan_of(solver, options)
    channels = 2 if options.get("variance_type") == "learned_range" else 1
    with FakeTensorMode():
        x, table = torch.empty(SHAPE), torch.empty(plan.table.shape, dtype=torch.float64)
        row, slots = torch.empty(SHAPE[0], dtype=torch.int64), torch.empty(4, *SHAPE)
        for k in range(len(plan)):
            out = network(x, channels) if plan.column("network")[k] else None
            ops.reverse_step(
                x,
                out,
                table,
                row,
                seed=9,
                slots=slots,
                used=plan.used,
                out=x,
                slots_out=slots,
                row_out=torch.empty_like(row),
            )
        assert x.shape == SHAPE


def test_the_counter_would_see_a_second_launch() -> None:
    if not library.available():
        pytest.skip(f"the C++ library is off: {library.reason()}")
    plan = plan_of("ddim", {})
    before = library.launches("reverse_step")
    trajectory(plan, "cpu", 1)
    trajectory(plan, "cpu", 1)
    assert library.launches("reverse_step") - before == 2 * len(plan)
