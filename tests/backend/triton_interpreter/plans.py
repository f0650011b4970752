"""Whole plans, row by row, in Triton's interpreter against the NumPy oracle.

tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff_kernels import launch

from fastdiff import Schedule, reference
from fastdiff.ops.step import StepArguments
from fastdiff.solvers import SOLVERS, make_plan

SHAPE = (3, 2, 5)
PLANS: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {"eta": 1.0}),
    ("dpm++3m", {}),
    ("dpm++2m_sde", {}),
    ("unipc", {"order": 3}),
    ("heun", {}),
    ("edm", {}),
    ("kdpm2_ancestral", {}),
    ("sa", {"predictor_order": 3, "corrector_order": 4}),
    ("pndm", {"runge_kutta": True}),
    ("ddpm", {"variance_type": "learned_range"}),
    ("repaint", {"jump_length": 2, "jump_n_sample": 2}),
    ("sa", {"pece": True}),
    ("rk", {"tableau": "dormand_prince"}),
]
LONG = len(PLANS)
PLANS += [(name, {}) for name in SOLVERS if name not in {n for n, _ in PLANS}]


@pytest.mark.parametrize(
    "solver, options", PLANS, ids=[f"{n}{list(o.values()) or ''}" for n, o in PLANS]
)
def test_a_plan_row_by_row(solver: str, options: dict[str, Any]) -> None:
    """One launch per row; the state, the slots and the next rows have the oracle's bits."""
    steps = 6 if (solver, options) in PLANS[:LONG] else 4  # the interpreter is slow
    plan = make_plan(
        Schedule.scaled_linear(1000), solver=solver, steps=steps, clip_range=2.0, **options
    )
    channels = 2 if options.get("variance_type") == "learned_range" else 1
    x, table = torch.from_numpy(reference.randn(SHAPE, seed=1)), torch.from_numpy(plan.table.copy())
    slots = torch.full((4, *SHAPE), torch.nan)
    row = torch.zeros(SHAPE[0], dtype=torch.int64)
    before = launch.launches["reverse_step"]
    for k in range(len(plan)):
        out = (0.25 * x + 0.125).repeat(1, channels, 1) if plan.column("network")[k] else None
        expected = reference.reverse_step(
            x.numpy(),
            None if out is None else out.numpy(),
            plan.table,
            k,
            slots=slots.numpy(),
            seed=9,
        )
        following, times = torch.empty_like(row), torch.empty_like(row)
        launch.reverse_step(
            StepArguments(
                x,
                out,
                table,
                row,
                out=x,
                slots=slots,
                seed=9,
                used=plan.used,
                slots_out=slots,
                row_out=following,
                time_out=times,
            )
        )
        assert np.array_equal(x.numpy(), expected.x_s), f"row {k}"
        assert np.array_equal(slots.numpy(), expected.slots, equal_nan=True), f"slots after row {k}"
        assert following.tolist() == [k + 1] * SHAPE[0]
        assert times.tolist() == expected.timestep.tolist()
        row = following
    assert launch.launches["reverse_step"] - before == len(plan)
    launch.check("cpu")
