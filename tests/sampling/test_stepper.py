"""The stepper against the op itself, row by row, and the hooks of `run_plan`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import Sampler, Schedule, ops
from fastdiff.sampling.device_plan import DevicePlan
from fastdiff.sampling.stepper import Stepper, draws_noise, run_plan
from fastdiff.solvers import Plan

SCHEDULE = Schedule.linear(100)


def plan(solver: str, **settings: Any) -> Plan:
    return Sampler(lambda x, t: x, SCHEDULE, solver=solver, steps=6, **settings).plan


def network(x: Tensor, row: int) -> Tensor:
    return torch.tanh(x) * (0.5 + 0.05 * row)


def by_the_op(made: Plan, x: Tensor, **draw: Any) -> list[Tensor]:
    """The state after each row, by `reverse_step` with new memory for every result."""
    table, states = torch.tensor(made.table), []
    state, slots = x, torch.zeros(made.slots, *x.shape, dtype=x.dtype) if made.slots else None
    for k in range(len(made)):
        out = None
        if made.column("network")[k]:
            out = network(state * made.column("input_scale")[k], k)
        row = torch.full((len(x),), k)
        result = ops.reverse_step(state, out, table, row, slots=slots, **draw)
        state, slots = result if made.slots else (result, None)
        states.append(state)
    return states


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm++3m", "unipc", "heun", "repaint", "euler"])
def test_steps_are_the_ops(solver: str, dtype: torch.dtype, keep: bool) -> None:
    made, x = plan(solver), torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    draw: dict[str, Any] = {"seed": 7, "sample_ids": torch.tensor([4, 0, 9])}
    state = x.clone()
    scale = made.column("input_scale")
    stepper = Stepper(
        DevicePlan.of(made, x.device), state, input=state * scale[0], wants_x0=True, **draw
    )
    for k, expected in enumerate(by_the_op(made, x, **draw)):
        assert stepper.row.tolist() == [k] * 3
        seen = stepper.x, stepper.x.clone(), stepper.input, stepper.input.clone()
        torch.testing.assert_close(stepper.input, stepper.x * scale[k], rtol=1e-6, atol=0)
        out = network(stepper.input, k) if made.column("network")[k] else None
        stepper.step(out, keep=keep)
        torch.testing.assert_close(stepper.x, expected, rtol=1e-6, atol=1e-6)
        assert (stepper.x is not seen[0]) == (stepper.input is not seen[2]) == keep
        if keep:
            assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
        assert stepper.x0 is not None and stepper.x0.shape == x.shape
    assert (stepper.x is state) != keep


def test_a_plan_that_grows_keeps_its_slots() -> None:
    """A row of another plan with more slots, added in the middle of a run."""
    few, many = plan("dpm++2m"), plan("dpm++3m")
    rows, x = DevicePlan(torch.device("cpu")), torch.randn(2, 4)
    rows.add(few)
    stepper = Stepper(rows, x.clone())
    expected = by_the_op(few, x)
    for k in range(3):
        stepper.step(network(stepper.x, k))
    slots = stepper.slots
    assert slots is not None
    before = slots.clone()
    rows.add(many)
    stepper.fit()
    assert stepper.slots is not None and len(stepper.slots) == many.slots > few.slots
    assert torch.equal(stepper.slots[: few.slots], before)
    for k in range(3, len(few)):
        stepper.step(network(stepper.x, k))
    torch.testing.assert_close(stepper.x, expected[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_hooks(dtype: torch.dtype) -> None:
    made = plan("euler_ancestral")
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    given, watched, done, noises = x.clone(), [], [], []

    def noise(row: int) -> Tensor:
        noises.append(row)
        return torch.full((2, 4), 0.25 * row, dtype=dtype)

    def watch(row: int, state: Tensor, inputs: Tensor, out: Tensor) -> Tensor:
        assert inputs.dtype == dtype
        watched.append((row, inputs, inputs.clone(), out))
        return out

    result = run_plan(
        made,
        lambda row, x: network(x, row),
        x,
        noise=noise,
        watch=watch,
        correct=lambda row, state: state + 0.125,
        done=done.append,
    )
    assert torch.equal(x, given) and result.dtype == dtype
    assert done == [row for row, *_ in watched] == list(range(len(made)))
    assert all(torch.equal(seen, copy) for _, seen, copy, _ in watched)
    assert noises == [row for row, draws in enumerate(draws_noise(made)) if draws]
    plain = run_plan(
        made,
        lambda row, x: network(x, row),
        x,
        noise=lambda row: torch.full((2, 4), 0.25 * row, dtype=dtype),
        correct=lambda row, state: state + 0.125,
    )
    assert torch.equal(plain, result)
    alone = run_plan(made, lambda row, x: network(x, row), x, seed=3)
    assert not torch.equal(alone, result)


def test_rows_without_a_network_call_get_no_output() -> None:
    made = plan("repaint", jump_length=2, jump_n_sample=2)
    called: list[int] = []

    def predict(row: int, x: Tensor) -> Tensor:
        called.append(row)
        return network(x, row)

    run_plan(made, predict, torch.zeros(1, 3), seed=0)
    assert called == [k for k in range(len(made)) if made.column("network")[k]]
    assert len(called) < len(made)
