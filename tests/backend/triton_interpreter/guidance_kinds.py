"""Kinds of guidance in Triton's interpreter: what rows take as the unconditional output.

tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, name, numbers, poisoned
from fastdiff_kernels import launch
from ops.guidance_rows import KINDS, PLAIN, inputs, table_of
from tolerances import ROUNDING
from torch import Tensor

from fastdiff import reference
from fastdiff.ops.step import StepArguments, workspace_for
from fastdiff.table import INDEX

PREPASSES: dict[str, float] = {"guidance_rescale": 0.6, "clip_mode": 2, "clip_bound": 5}
PREPASSES |= {"clip_ratio": 0.9, "x0_x": 0.5, "x0_out": 0.9, "x__x0": 0.7}
SIZES = [1, 5, 300]


def rows_of_all_kinds(**columns: float) -> Tensor:
    table = table_of(PLAIN, *KINDS.values(), **columns)
    table[::3, INDEX["out_uncond"]] = 1
    table[:, INDEX["guidance_weight"]] = torch.tensor([1.0, 0.5, 1.0, 2.0])[torch.arange(12) % 4]
    return table


def run(
    table: Tensor, row: Tensor, values: tuple[Tensor, ...], *, separate: bool, known: bool = True
) -> tuple[Tensor, Tensor]:
    """Returns the next x and the slots, which are written in place or into separate memory."""
    x, output, slots, gamma = values
    used = sum(1 << i for i in torch.nonzero(table.ne(0).any(0)).flatten().tolist())
    x, slots = x.clone(), slots.clone()
    out = poisoned(tuple(x.shape), x.dtype) if separate else x
    slots_out = poisoned(tuple(slots.shape), slots.dtype) if separate else slots
    step = StepArguments(
        x, output, table, row, slots=slots, guidance=gamma, out=out, slots_out=slots_out,
        used=used if known else -1, workspace=workspace_for(x).fill_(-777.0),
        gradient=None if known else x,
    )  # fmt: skip
    launch.reverse_step(step)
    launch.check("cpu")
    return out, slots_out


def compare(table: Tensor, values: tuple[Tensor, ...], first: int) -> None:
    """Compares a step with the oracle's, and its last sample with a step of that one alone."""
    x, output, slots, gamma = values
    batch, limit = len(x), 64 * ROUNDING[name(x.dtype)]
    row, one = (first + torch.arange(batch)) % 12, slice(batch - 1, batch)
    with np.errstate(all="ignore"):
        want = reference.reverse_step(
            numbers(x),
            numbers(output),
            table.numpy(),
            row.numpy(),
            slots=slots.numpy(),
            guidance=gamma.numpy(),
        )
    got, kept = run(table, row, values, separate=bool(first))
    np.testing.assert_allclose(numbers(got), want.x_s, rtol=limit, atol=4 * limit)
    np.testing.assert_allclose(kept.numpy(), want.slots, rtol=1e-6, atol=1e-6)
    halves = torch.cat([half[one] for half in output.chunk(2)])
    some = (x[one].clone(), halves, slots[:, one].clone(), gamma[one].clone())
    alone = run(table, row[one].clone(), some, separate=not first)
    assert torch.equal(alone[0], got[one]) and torch.equal(alone[1], kept[:, one])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_all_kinds_equal_the_oracle(size: int, dtype: torch.dtype) -> None:
    """In place and not; bits are the same in any batch."""
    values = inputs((4, size), dtype)
    for first in (0, 5, 9):
        compare(rows_of_all_kinds(), values, first)
    if size > 1:
        compare(rows_of_all_kinds(**PREPASSES), values, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_a_long_sample_is_read_in_parts(dtype: torch.dtype) -> None:
    first = 1 if dtype == torch.float32 else 8
    compare(rows_of_all_kinds(guidance_rescale=0.6), inputs((2, 33_000), dtype), first)


def test_an_unknown_table_and_a_known_one_give_the_same_bits() -> None:
    values = inputs((4, 30), torch.float32)
    table, row = rows_of_all_kinds(), torch.tensor([1, 5, 8, 10])
    known, unknown = (run(table, row, values, separate=True, known=k) for k in (True, False))
    assert torch.equal(known[0], unknown[0]) and torch.equal(known[1], unknown[1])


def test_what_is_launched() -> None:
    """The prepass comes first, in parts of a long sample; without kinds it is not launched."""
    row = torch.tensor([1, 8])
    for size, several in ((40, False), (33_000, True)):
        values = inputs((2, size), torch.float32)
        for table, kinds in ((rows_of_all_kinds(), 1), (table_of(PLAIN, PLAIN), 0)):
            before = launch.launches.copy()
            run(table, row if kinds else row * 0, values, separate=False)
            counts: dict[str, Any] = {"reverse_step": 1}
            if kinds:
                counts["reverse_step_guidance"] = 1
            if kinds and several:
                counts["reverse_step_guidance_combine"] = 1
            assert launch.launches - before == counts


def test_strength_1_reads_no_other_half() -> None:
    x, output, slots, gamma = inputs((4, 30), torch.float32)
    output[4:], x[:], slots[:] = torch.nan, torch.nan, torch.nan
    for k in range(12):
        table = table_of(PLAIN, *KINDS.values())
        values = (x, output, slots, torch.ones_like(gamma))
        got, kept = run(table, torch.full((4,), k), values, separate=False)
        assert torch.equal(got, output[:4]) and kept.isnan().all()


def test_a_row_outside_the_table_leaves_the_terms_alone() -> None:
    x, output, slots, _ = inputs((4, 9), torch.float32)
    table, row = rows_of_all_kinds(), torch.tensor([1, 12, -1, 8])
    workspace = workspace_for(x).fill_(-777.0)
    launch.reverse_step(
        StepArguments(
            x, output, table, row, slots=slots, guidance=torch.full((4,), 3.0), out=x,
            slots_out=slots, used=-1, workspace=workspace, gradient=x,
        )
    )  # fmt: skip
    bad = [False, True, True, False]
    assert x.isnan().all(1).tolist() == bad
    assert workspace[2:].eq(-777).all(0).tolist() == bad
    with pytest.raises(IndexError, match="reverse_step"):
        launch.check("cpu")
