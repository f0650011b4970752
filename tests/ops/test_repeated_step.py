"""`RepeatedStep`: the same bits, errors and bookkeeping as `reverse_step`, whatever changes from
call to call.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.cases import random_table

from fastdiff import Schedule, ops
from fastdiff.backend import library
from fastdiff.solvers import make_plan

SHAPE = (3, 2, 5, 7)
BATCH = SHAPE[0]


class Buffers:
    """Everything a loop holds, equal for equal arguments."""

    def __init__(self, table: torch.Tensor, *, guided: bool = False):
        g = torch.Generator().manual_seed(0)
        self.table = table
        self.x = torch.randn(SHAPE, generator=g)
        self.slots = torch.randn((4, *SHAPE), generator=g)
        self.x0, self.x_in = (
            torch.empty(SHAPE),
            torch.empty((BATCH * (2 if guided else 1), *SHAPE[1:])),
        )
        self.rooms = torch.empty(2, BATCH)
        self.row, self.row_out = (
            torch.zeros(BATCH, dtype=torch.int64),
            torch.empty(BATCH, dtype=torch.int64),
        )
        self.gamma = torch.tensor([1.0, 3.0, -0.5]) if guided else None
        self.draw = {"seed": 9, "sample_ids": torch.tensor([4, 2**40, 7])}
        self.others = {
            "slots": self.slots,
            "x0_out": self.x0,
            "input_out": self.x_in,
            "workspace": self.rooms,
        }

    def plain(self, out: Any, guided: bool, **extra: Any) -> None:
        ops.reverse_step(
            self.x,
            out,
            self.table,
            self.row,
            **self.draw,
            guidance=self.gamma if guided else None,
            out=self.x,
            slots_out=self.slots,
            row_out=self.row_out,
            **self.others,
            **extra,
        )

    def state(self) -> list[torch.Tensor]:
        self.row, self.row_out = self.row_out, self.row
        return [v.clone() for v in (self.x, self.slots, self.x0, self.x_in, self.row)]


def outputs(k: int, rows: int) -> torch.Tensor:
    return torch.randn((rows, *SHAPE[1:]), generator=torch.Generator().manual_seed(k))


@pytest.mark.parametrize("solver", ["ddpm", "unipc", "heun", "edm", "random"])
@pytest.mark.parametrize("guided", [False, True])
def test_equals_the_op(solver: str, guided: bool, backend: str) -> None:
    """Guidance comes and goes, outputs change their dtype and memory, and a call with noise of its
    own lies between.
    """
    if solver == "random":
        table = torch.from_numpy(random_table(9, 1, learned=False))
        table[:, 5] = 0.0  # no gradient is given
    else:
        plan = make_plan(
            Schedule.linear(1000),
            solver=solver,
            steps=6,
            dynamic_threshold=0.9,
            guidance_rescale=0.4,
        )
        table = torch.tensor(plan.table)
    a, b = Buffers(table, guided=guided), Buffers(table, guided=guided)
    step = ops.RepeatedStep(b.x, table, guidance=b.gamma, **b.draw, **b.others)
    for k in range(len(table)):
        both = guided and k % 3 != 1
        out = outputs(k, BATCH * (2 if both else 1))
        out = out.to(torch.bfloat16) if k % 4 == 3 else out
        out = out.transpose(2, 3).contiguous().transpose(2, 3) if k == 2 else out
        noise = torch.full(SHAPE, 0.5) if k == 4 else None
        a.plain(out, both, noise=noise)
        step(out.clone(), b.row, b.row_out, guided=both, noise=noise)
        for got, expected in zip(b.state(), a.state(), strict=True):
            assert torch.equal(got, expected), k


def test_rows_without_a_call_take_no_output() -> None:
    plan = make_plan(Schedule.linear(1000), solver="edm", steps=5)
    assert (plan.column("network") == 0).any()
    a, b = (Buffers(torch.tensor(plan.table)) for _ in range(2))
    step = ops.RepeatedStep(b.x, b.table, used=plan.used, **b.draw, **b.others)
    for k in range(len(plan)):
        out = outputs(k, BATCH) if plan.column("network")[k] else None
        a.plain(out, False)
        step(out, b.row, b.row_out)
        assert all(torch.equal(x, y) for x, y in zip(b.state(), a.state(), strict=True))


@pytest.mark.cpu_only
@pytest.mark.skipif(not library.available(), reason="the C++ library is off")
def test_one_launch_and_the_same_errors() -> None:
    plan = make_plan(Schedule.linear(1000), solver="ddim", steps=5)
    b = Buffers(torch.tensor(plan.table))
    step = ops.RepeatedStep(b.x, b.table, used=plan.used, **b.draw, **b.others)
    out = outputs(0, BATCH)
    before = library.launches("reverse_step")
    for _ in range(3):
        version = b.x._version
        step(out, b.row, b.row_out)
        assert b.x._version > version  # autograd sees that the memory changed
    assert library.launches("reverse_step") == before + 3
    b.row.fill_(len(plan.table))
    with pytest.raises(IndexError, match="reverse_step"):
        step(out, b.row, b.row_out)
    with pytest.raises(ValueError, match="model_output"):
        step(out[:, :1], b.row, b.row_out)
    with pytest.raises(ValueError, match="model_output"):
        step(None, b.row.zero_(), b.row_out)


@pytest.mark.cpu_only
def test_watched_calls_go_through_the_op() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    b = Buffers(torch.tensor(make_plan(Schedule.linear(1000), solver="ddim", steps=5).table))
    step = ops.RepeatedStep(b.x, b.table, **b.draw, **b.others)
    step(outputs(0, BATCH), b.row, b.row_out)
    with Watch():
        step(outputs(1, BATCH), b.row, b.row_out)
    assert any("reverse_step" in name for name in seen)
