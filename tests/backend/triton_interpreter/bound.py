"""Bound steps in Triton's interpreter, which compiles nothing that could be kept.

tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff_kernels import launch

import fastdiff
from fastdiff import Schedule, ops
from fastdiff.ops.step import workspace_for
from fastdiff.solvers import make_plan

SHAPE = (3, 2, 5)


KINDS: list[dict[str, Any]] = [
    {},
    {"guidance_type": "apg", "apg_norm": 2.0, "apg_momentum": -0.5},
]


@pytest.mark.parametrize("kind", KINDS, ids=["plain", "apg"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_bound_step_has_the_ops_bits(guided: bool, kind: dict[str, Any]) -> None:
    """Rows of a plan with prepasses and slots, in turn from either tensor of rows."""
    options: dict[str, Any] = {"dynamic_threshold": 0.9, "guidance_rescale": 0.4, **kind}
    plan = make_plan(Schedule.linear(1000), solver="dpm++2m_sde", steps=4, **options)
    table, halves = torch.from_numpy(plan.table.copy()), 1 + guided
    x = torch.linspace(-2, 2, 30).view(SHAPE)
    slots = torch.zeros(4, *SHAPE)
    rows = [torch.zeros(SHAPE[0], dtype=torch.int64) for _ in range(2)]
    guidance = torch.tensor([1.0, 3.0, 0.5]) if guided else None
    state, memory = x.clone(), slots.clone()
    with fastdiff.use("triton"):
        ways = (
            ops.StepArguments(
                state,
                None,
                table,
                rows[0],
                slots=memory,
                seed=9,
                guidance=guidance,
                used=plan.used,
                out=state,
                slots_out=memory,
                row_out=rows[1],
                workspace=workspace_for(x),
            )
            .bind("model_output")
            .both_ways()
        )
        for k in range(len(plan)):
            out = torch.cat([0.25 * x + 0.125, 0.5 * x])[: halves * SHAPE[0]]
            given: dict[str, Any] = {"slots": slots, "seed": 9, "guidance": guidance}
            x, slots = ops.reverse_step(
                x, out, table, torch.full((SHAPE[0],), k), used=plan.used, **given
            )
            before = launch.launches["reverse_step"]
            ways[k % 2](out)
            assert launch.launches["reverse_step"] == before + 1
            assert torch.equal(state, x) and torch.equal(memory, slots)
