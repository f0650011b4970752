"""A step is one kernel and reads nothing from the device; the ops work under torch.compile.

The first is shown by launch counters, the second by fake tensors, whose values raise when read.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.cases import random_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import fastdiff
from fastdiff import Sampler, Schedule, ops
from fastdiff.solvers import make_plan

SCHEDULE = Schedule.linear(1000)
PLAN = make_plan(SCHEDULE, solver="ddpm", steps=10, clip_range=1.0)
ALPHA, SIGMA = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)


def _step_arguments(batch: int = 4) -> tuple[Any, ...]:
    x = torch.randn(batch, 3, 8, 8)
    return x, torch.randn_like(x), torch.tensor(PLAN.table), torch.zeros(batch, dtype=torch.int64)


@pytest.mark.cpu_only
def test_a_step_is_one_launch_of_the_c_library() -> None:
    from fastdiff.backend import library as native

    if not native.available():
        pytest.skip(f"the C++ library is off: {native.reason()}")
    x, out, table, row = _step_arguments()
    guidance, doubled = torch.full((4,), 2.0), torch.cat([out, out])
    with fastdiff.use("cpu"):
        before = {op: native.launches(op) for op in ("randn", "q_sample", "reverse_step")}
        ops.reverse_step(
            x,
            doubled,
            table,
            row,
            seed=1,
            guidance=guidance,
            used=PLAN.used,
            out=x,
            x0_out=torch.empty_like(x),
            input_out=torch.empty_like(doubled),
            row_out=torch.empty_like(row),
            time_out=torch.empty(8),
        )
        after = {op: native.launches(op) for op in before}
    assert after == before | {"reverse_step": before["reverse_step"] + 1}


@pytest.mark.cpu_only
def test_a_run_is_one_launch_per_step() -> None:
    from fastdiff.backend import library as native

    if not native.available():
        pytest.skip(f"the C++ library is off: {native.reason()}")
    with fastdiff.use("cpu"):
        before = native.launches("randn"), native.launches("reverse_step")
        Sampler(lambda x, t: x, SCHEDULE, solver="ddpm", steps=17).sample((2, 3), seed=0)
        assert (
            native.launches("randn") - before[0],
            native.launches("reverse_step") - before[1],
        ) == (1, 17)


def test_the_wrappers_read_no_tensor() -> None:
    """Under FakeTensorMode any `.item()`, `nonzero` or comparison of values in a wrapper raises."""
    with FakeTensorMode():
        x, out = torch.empty(4, 3, 8, 8), torch.empty(8, 6, 8, 8)
        table, row = torch.empty(11, 62, dtype=torch.float64), torch.empty(4, dtype=torch.int64)
        slots, guidance, seeds = (
            torch.empty(2, 4, 3, 8, 8),
            torch.empty(4),
            torch.empty(4, dtype=torch.int64),
        )
        x_s, fresh = ops.reverse_step(
            x,
            out,
            table,
            row,
            slots=slots,
            seed=seeds,
            sample_ids=seeds,
            guidance=guidance,
            gradient=x,
            used=PLAN.used,
        )
        assert x_s.shape == x.shape and fresh.shape == slots.shape
        ops.reverse_step(
            x,
            out,
            table,
            row,
            slots=slots,
            seed=1,
            guidance=guidance,
            used=PLAN.used,
            out=x,
            slots_out=slots,
            x0_out=x,
            input_out=out[:, :3].contiguous(),
            row_out=torch.empty_like(row),
            time_out=torch.empty(8),
        )
        assert ops.randn((4, 5), seed=seeds, sample_ids=seeds).shape == (4, 5)
        t = torch.empty(4, dtype=torch.int64)
        table64 = torch.empty(1000, dtype=torch.float64)
        assert ops.q_sample(x, t, table64, table64, seed=1, sample_ids=seeds).shape == x.shape


def test_a_run_under_fake_tensors_reads_nothing() -> None:
    """The whole loop of a DDPM run: the host knows every row without asking the device."""
    with FakeTensorMode():
        x = Sampler(lambda x, t: x, SCHEDULE, solver="ddpm", steps=5).sample(
            x_T=torch.empty(2, 3), seed=0
        )
        assert x.shape == (2, 3)


def test_opcheck(backend: str) -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    alpha, sigma = ALPHA.clone().requires_grad_(), SIGMA.clone().requires_grad_()
    t, f = torch.tensor([1, 2, 2]), torch.ops.fastdiff
    counter = (5, None, None, 0, 2, False)
    noised = (x.detach(), t, ALPHA, SIGMA, None, *counter, torch.empty_like(x))
    opcheck(f.randn_out.default, (torch.empty(3, 5), *counter))
    opcheck(f.q_sample.default, (x, t, alpha, sigma, None, *counter))
    opcheck(f.q_sample_out.default, noised)
    table = torch.from_numpy(random_table(5))
    out = torch.randn(6, 8, 2, requires_grad=True)
    slots = torch.randn(4, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    gamma, gradient = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64), torch.ones(3, 4, 2)
    step = (
        table,
        torch.tensor([1, 2, 4]),
        slots,
        None,
        5,
        None,
        True,
        None,
        gamma,
        gradient,
        1,
        False,
        -1,
    )
    opcheck(f.reverse_step.default, (x, out, *step))
    detached = (*step[:2], slots.detach(), *step[3:])
    results = (
        torch.empty_like(x.detach()),
        torch.empty_like(slots),
        None,
        torch.empty(6, 4, 2),
        torch.empty_like(t),
        torch.empty(6, dtype=torch.int64),
        torch.empty(3),
        None,
    )
    opcheck(f.reverse_step_out.default, (x.detach(), out.detach(), *detached, *results))


def test_fullgraph_compilation(backend: str) -> None:
    x, out, table, row = _step_arguments()
    t = torch.arange(4)

    def chain(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        noised = ops.q_sample(x, t, ALPHA, SIGMA, seed=3)
        step = ops.reverse_step(noised, out * 2, table, row, seed=1, used=PLAN.used)
        return step + ops.randn((4, 3, 8, 8), seed=2)

    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, out), chain(x, out))


def test_training_through_a_compiled_q_sample(backend: str) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    t = torch.arange(4)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (ops.q_sample(x, t, ALPHA, SIGMA, seed=3) ** 2).sum()

    expected = torch.autograd.grad(loss(x), x)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(x), x)[0], expected)


@pytest.mark.parametrize("counts", ["step", "seed"])
def test_a_counted_step_or_seed_compiles_once_more_at_most(counts: str) -> None:
    """A training loop passes its step as a number that grows: one graph serves all of them."""
    from torch._dynamo.testing import CompileCounterWithBackend

    x0, t = torch.randn(4, 3, 8, 8), torch.arange(4)
    weight = torch.randn(4, 3, 8, 8, requires_grad=True)

    def loss(x0: torch.Tensor, number: int) -> torch.Tensor:
        counter = {"seed": 0, "step": 0} | {counts: number}
        x_t = ops.q_sample(x0, t, ALPHA, SIGMA, **counter)
        z = ops.reparameterize(x_t * weight, x_t, **counter)
        return ops.noise_mse(z + ops.randn((4, 3, 8, 8), **counter), **counter).mean()

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for number in range(12):
        got, want = compiled(x0, number), loss(x0, number)
        assert torch.equal(got, want)
        got.backward()
    assert counter.frame_count <= 2
