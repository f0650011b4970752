"""`StepArguments.bind`: a bound call does what `reverse_step` does, whatever changes between calls.

It gives the same bits, errors and launches.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from ops.cases import random_table

import fastdiff
from fastdiff import Schedule, ops
from fastdiff.backend import abi, choice, library
from fastdiff.ops.step import HEAD_ROWS
from fastdiff.solvers import make_plan

SHAPE = (3, 2, 5, 7)
BATCH = SHAPE[0]


MOVING = ("model_output", "row", "row_out", "guidance", "noise")


class Buffers:
    """The buffers of a loop, with random values that are the same in every object.

    `plain` executes a step by `reverse_step`, the result of `bound` by a bound call.
    """

    def __init__(self, table: torch.Tensor, *, guided: bool = False):
        g = torch.Generator().manual_seed(0)
        self.table = table
        self.x = torch.randn(SHAPE, generator=g)
        self.slots = torch.randn((4, *SHAPE), generator=g)
        self.x0, self.x_in = (
            torch.empty(SHAPE),
            torch.empty((BATCH * (2 if guided else 1), *SHAPE[1:])),
        )
        self.workspace = torch.empty(HEAD_ROWS, BATCH)
        self.times = torch.full((BATCH * (2 if guided else 1),), -1.0)
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
            "time_out": self.times,
            "workspace": self.workspace,
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

    def bound(self, used: int | None = None) -> Any:
        step = ops.StepArguments(
            self.x,
            None,
            self.table,
            self.row,
            used=used,
            out=self.x,
            slots_out=self.slots,
            **self.draw,
            **self.others,
        ).bind(*MOVING)

        def call(out: Any, guided: bool = False, noise: Any = None) -> None:
            step(out, self.row, self.row_out, self.gamma if guided else None, noise)

        return call

    def state(self) -> list[torch.Tensor]:
        """Exchanges the two tensors of rows and returns copies of what a step has written."""
        self.row, self.row_out = self.row_out, self.row
        return [v.clone() for v in (self.x, self.slots, self.x0, self.x_in, self.row, self.times)]


def outputs(k: int, rows: int) -> torch.Tensor:
    return torch.randn((rows, *SHAPE[1:]), generator=torch.Generator().manual_seed(k))


@pytest.mark.parametrize("solver", ["ddpm", "unipc", "heun", "edm", "random"])
@pytest.mark.parametrize("guided", [False, True])
def test_equals_the_op(solver: str, guided: bool, backend: str) -> None:
    """Calls with and without guidance and given noise; outputs of other dtypes, strides, memory."""
    if solver == "random":
        table = torch.from_numpy(random_table(9, 1, learned=False))
        table[:, 5] = 0.0  # no gradient is passed
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
    step = b.bound()
    for k in range(len(table)):
        both = guided and k % 3 != 1
        out = outputs(k, BATCH * (2 if both else 1))
        out = out.to(torch.bfloat16) if k % 4 == 3 else out
        out = out.transpose(2, 3).contiguous().transpose(2, 3) if k == 2 else out
        noise = torch.full(SHAPE, 0.5) if k == 4 else None
        a.plain(out, both, noise=noise)
        step(out.clone(), both, noise)
        for got, expected in zip(b.state(), a.state(), strict=True):
            assert torch.equal(got, expected), k


def test_rows_without_a_call_take_no_output() -> None:
    plan = make_plan(Schedule.linear(1000), solver="edm", steps=5)
    assert (plan.column("network") == 0).any()
    a, b = (Buffers(torch.tensor(plan.table)) for _ in range(2))
    step = b.bound(plan.used)
    for k in range(len(plan)):
        out = outputs(k, BATCH) if plan.column("network")[k] else None
        a.plain(out, False)
        step(out)
        assert all(torch.equal(x, y) for x, y in zip(b.state(), a.state(), strict=True))


def test_both_ways_equal_the_op(backend: str) -> None:
    """`both_ways` exchanges the two tensors of rows; either call may be the first."""
    plan = make_plan(Schedule.linear(1000), solver="unipc", steps=6)
    for first in (0, 1):
        a, b = (Buffers(torch.tensor(plan.table)) for _ in range(2))
        fixed = ops.StepArguments(
            b.x,
            None,
            b.table,
            b.row if first == 0 else b.row_out,
            used=plan.used,
            out=b.x,
            slots_out=b.slots,
            row_out=b.row_out if first == 0 else b.row,
            **b.draw,
            **b.others,
        )
        ways = fixed.bind("model_output").both_ways()
        for k in range(len(plan)):
            out = outputs(k, BATCH)
            out = out.to(torch.bfloat16) if k == 3 else out
            a.plain(out, False)
            ways[(k + first) % 2](out)
            for got, expected in zip(b.state(), a.state(), strict=True):
                assert torch.equal(got, expected), (first, k)


@pytest.mark.cpu_only
@pytest.mark.skipif(not library.available(), reason="the C++ library is off")
def test_one_launch_and_the_same_errors() -> None:
    plan = make_plan(Schedule.linear(1000), solver="ddim", steps=5)
    b = Buffers(torch.tensor(plan.table))
    step = b.bound(plan.used)
    out = outputs(0, BATCH)
    before = library.launches("reverse_step")
    for _ in range(3):
        version = b.x._version
        step(out)
        assert b.x._version > version  # autograd sees that the memory changed
    assert library.launches("reverse_step") == before + 3
    b.row.fill_(len(plan.table))
    with pytest.raises(IndexError, match="reverse_step"):
        step(out)
    with pytest.raises(ValueError, match="model_output"):
        step(out[:, :1])
    with pytest.raises(ValueError, match="model_output"):
        b.row.zero_()
        step(None)
    b.row = b.row.to(torch.int32)
    with pytest.raises(TypeError, match="expected row as an int64 tensor"):
        step(out)


@pytest.mark.cpu_only
def test_watched_calls_go_through_the_op() -> None:
    """Under a dispatch mode a bound call is the registered op, which the mode sees."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    b = Buffers(torch.tensor(make_plan(Schedule.linear(1000), solver="ddim", steps=5).table))
    step = b.bound()
    step(outputs(0, BATCH))
    with Watch():
        step(outputs(1, BATCH))
    assert any("reverse_step" in name for name in seen)


def test_everything_that_can_move_moves(backend: str) -> None:
    """Every tensor and the seed is another one at every call, as in the drop-ins."""
    plan = make_plan(Schedule.linear(1000), solver="sa", steps=6)
    table = torch.tensor(plan.table)
    fixed = {"table", "stream", "mode", "used", "workspace"}
    names = sorted(set(ops.StepArguments._fields) - fixed)
    step = ops.StepArguments(None, None, table, None, used=plan.used).bind(*names)  # type: ignore[arg-type]
    for k in range(len(table)):
        moving = {
            "x_t": outputs(k, BATCH),
            "model_output": outputs(k + 10, 2 * BATCH if k % 2 else BATCH),
            "row": torch.full((BATCH,), k),
            "slots": torch.stack([outputs(20 + 4 * k + i, BATCH) for i in range(4)]),
            "noise": outputs(k + 90, BATCH) if k % 3 == 2 else None,
            "seed": k if k % 3 else 2**64 - 1,
            "sample_ids": torch.arange(BATCH) + k,
            "guidance": torch.tensor([1.0, 3.0, 0.5 * k]) if k % 2 else None,
            "gradient": outputs(k + 100, BATCH),
        }
        results = []
        for call in ("op", "bound"):
            written = {
                "out": torch.empty(SHAPE),
                "slots_out": torch.empty((4, *SHAPE)),
                "x0_out": torch.empty(SHAPE),
                "input_out": torch.empty(SHAPE),
                "row_out": torch.empty(BATCH, dtype=torch.int64),
                "time_out": torch.empty(BATCH),
                "log_prob_out": torch.empty(BATCH),
            }
            if call == "op":
                ops.reverse_step(table=table, used=plan.used, **moving, **written)  # type: ignore[arg-type]
            else:
                step(*((moving | written)[name] for name in names))
            results.append(written)
        for name, expected in results[0].items():
            assert torch.equal(results[1][name], expected), (k, name)


def test_a_moving_table_may_use_other_columns(backend: str) -> None:
    """Without `used` the columns in use are those of each call's table."""
    x, row, out = outputs(0, BATCH), torch.zeros(BATCH, dtype=torch.int64), torch.empty(SHAPE)
    step = ops.StepArguments(x, x, None, row, seed=3, out=out).bind("table")  # type: ignore[arg-type]
    for solver in ("ddim", "ddpm", "ddim"):
        table = torch.tensor(make_plan(Schedule.linear(1000), solver=solver, steps=6).table)
        step(table)
        assert torch.equal(out, ops.reverse_step(x, x, table, row, seed=3)), solver  # type: ignore[arg-type]


def test_a_bound_step_follows_the_choice_of_a_backend() -> None:
    """`fastdiff.use` applies to a step that was bound before."""
    table = torch.tensor(make_plan(Schedule.linear(1000), solver="ddim", steps=5).table)
    b, names = Buffers(table), []
    step = b.bound()
    launcher = choice.launcher

    def noted(op: str, device: torch.device) -> Any:
        names.append(choice.backend_for(op, device))
        return launcher(op, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "launcher", noted)
        for _ in range(2):
            step(outputs(0, BATCH))
            with fastdiff.use("torch"):
                step(outputs(0, BATCH))
    assert "torch" in names


def test_a_seed_out_of_range_is_an_error_at_every_call() -> None:
    table = torch.tensor(make_plan(Schedule.linear(1000), solver="ddpm", steps=5).table)
    x, row = outputs(0, BATCH), torch.zeros(BATCH, dtype=torch.int64)
    step = ops.StepArguments(x, x, table, row, out=torch.empty_like(x)).bind("seed")
    step(3)
    for seed, error in ((2**64, ValueError), (-1, ValueError), (True, TypeError), (1.0, TypeError)):
        with pytest.raises(error, match="expected seed"):
            step(seed)


def test_tensors_that_must_be_copied_are_read_at_every_call() -> None:
    """A guidance of another dtype is cast anew: its values may have changed."""
    table = torch.tensor(make_plan(Schedule.linear(1000), solver="ddim", steps=5).table)
    x, row, out = outputs(0, BATCH), torch.zeros(BATCH, dtype=torch.int64), torch.empty(SHAPE)
    both, gamma = outputs(1, 2 * BATCH), torch.ones(BATCH, dtype=torch.float64)
    step = ops.StepArguments(x, both, table, row, guidance=gamma, out=out).bind("row")
    for value in (1.0, 4.0):
        step(row)
        expected = ops.reverse_step(x, both, table, row, guidance=gamma.float())
        assert torch.equal(out, expected), value  # type: ignore[arg-type]
        gamma.fill_(4.0)


def test_threads_share_a_bound_step() -> None:
    """Each call packs its own pointers."""
    table = torch.tensor(make_plan(Schedule.linear(1000), solver="ddim", steps=5).table)
    shape = (2, 3, 64, 64)
    row = torch.zeros(2, dtype=torch.int64)
    step = ops.StepArguments(torch.empty(shape), None, table, row).bind(
        "x_t", "model_output", "out"
    )

    def work(k: int) -> bool:
        g = torch.Generator().manual_seed(k)
        x, output = (torch.randn(shape, generator=g) for _ in range(2))
        expected = ops.reverse_step(x, output, table, row)
        for _ in range(50):
            out = torch.empty(shape)
            step(x, output, out)
            if not torch.equal(out, expected):  # type: ignore[arg-type]
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_bind_refuses_names_that_cannot_change() -> None:
    x = outputs(0, BATCH)
    arguments = ops.StepArguments(x, x, torch.zeros(1, 62, dtype=torch.float64), torch.zeros(3))
    for names in (("used",), ("row", "row"), ("rows",)):
        with pytest.raises(
            ValueError, match="fastdiff.ops.step.StepArguments.bind: expected different"
        ):
            arguments.bind(*names)
    row = torch.zeros(BATCH, dtype=torch.int64)
    table = torch.tensor(make_plan(Schedule.linear(1000), solver="ddim", steps=5).table)
    with pytest.raises(ValueError, match="expected out, got None"):
        ops.StepArguments(x, x, table, row).bind("row")(row)


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", sorted(abi.STEP_WORDS))
def test_the_words_of_the_packed_struct(name: str) -> None:
    """Another value of one argument changes one word of the struct: that of `abi.STEP_WORDS`."""
    batch, shape = 3, (3, 4)
    rows, states = torch.zeros(3, batch, dtype=torch.int64), torch.zeros(20, *shape)
    times = torch.zeros(batch, dtype=torch.int64)
    step = ops.StepArguments(
        states[0],
        states[1],
        torch.zeros(1, 62, dtype=torch.float64),
        rows[0],
        slots=states[2:3],
        noise=states[4],
        seed=7,
        sample_ids=rows[1],
        guidance=states[5, :, 0].clone(),
        gradient=states[6],
        used=0,
        out=states[7],
        slots_out=states[8:9],
        x0_out=states[9],
        input_out=states[10],
        row_out=rows[2],
        time_out=times,
        log_prob_out=states[11, :, 0].clone(),
    )
    old = getattr(step, name)
    new = 8 if name == "seed" else old.clone()
    at = (0, 0, 0, 0)
    before, after = (
        memoryview(abi.reverse_step(at, s)).cast("Q") for s in (step, step._replace(**{name: new}))
    )
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed == [abi.STEP_WORDS[name]]
    assert after[changed[0]] == (8 if name == "seed" else new.data_ptr())
    assert abi.packers(step, [name])[0](at, [new]) == bytes(after)
