"""Traced plans, and the execution of their rows one network call at a time.

`TracedPlan.execute` is the last stage of a drop-in's step (the module `base` lists all of them). A
step of a pipeline is one network call, and that is one row of the plan, after the rows without a
call that precede it, such as the noise that churn adds. Each row is one launch of `reverse_step`.
Where autograd records, the row goes through the op itself; otherwise through a `BoundStep`, which
has checked such a call before and only launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version

from ...grad_mode import outside_inference
from ...ops import reverse_step
from ...ops.bound_step import BoundStep
from ...ops.step import StepArguments
from ...sampling.device_plan import DevicePlan, used_without_network
from ...sampling.stepper import draws_noise
from ...solvers import Plan
from ...table import INDEX, OPERANDS, SLOTS, columns

_MOVING = ("x_t", "model_output", "noise", "seed")
_OWN = ("row", "slots", "slots_out", "out", "x0_out")
"""The arguments of a row that change from step to step, in the order in which they are passed; the
second ones are made here to fit the state."""

_SLOTS = range(1, SLOTS + 1)
_FIRST_OF_SLOTS = INDEX["s1.x"]  # the columns from it on write slots
_BEFORE_SLOTS = (1 << _FIRST_OF_SLOTS) - 1  # the mask of the others


class Call(NamedTuple):
    """The rows that belong to a network call."""

    rows: list[int]  # its own, and rows without a network call before or after it
    draws: bool  # whether one of them draws noise


class TracedPlan:
    """A plan, its rows grouped by network call, and bound steps for the devices of the samples.

    Rows without a network call belong to the call after them, which sees the state before them; or
    with `first_sees` to the call before them, so that the next call sees what they return, as in
    the sampling loop.

    Attributes:
        plan: the plan.
        calls: its network calls in their order.
        leading: with `first_sees` the rows before the first call, which that call has, too.
        slots: the number of slots that it reads or writes.
        undefined: the indices of the calls without coefficients, given as a mask of rows [R].
    """

    def __init__(self, plan: Plan, undefined: NDArray[np.bool_], *, first_sees: bool = False):
        self.plan = plan
        written = [plan.table[:, [INDEX[f"s{i}.{o}"] for o in OPERANDS]].any() for i in _SLOTS]
        # a class that returns slot 1 from its steps reads none
        self.slots = plan.slots and max(i for i, any_ in zip(_SLOTS, written, strict=True) if any_)
        self._network = [bool(v) for v in plan.column("network")]
        self._draws = draws_noise(plan)
        # the column masks of rows without and with a network call
        self._used = used_without_network(plan), plan.used
        if first_sees:
            begins = [row for row in range(len(plan)) if self._network[row]]
            self.leading = list(range(begins[0]))
            bounds = [0, *begins[1:], len(plan)]
        else:
            self.leading = []
            bounds = [0, *(row + 1 for row in range(len(plan)) if self._network[row])]
        groups = [list(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]
        self.calls = [Call(rows, any(self._draws[r] for r in rows)) for rows in groups]
        self.undefined = frozenset(
            number for number, call in enumerate(self.calls) if undefined[call.rows].any()
        )
        self._single = [
            rows[0]
            if len(rows) == 1 and self._network[rows[0]] and k not in self.undefined
            else None
            for k, (rows, _) in enumerate(self.calls)
        ]
        # by device: the steps of rows without and with a network call
        self._steps: dict[torch.device, tuple[BoundStep, BoundStep]] = {}
        # The batch and device of the latest step, and what `_prepare` returned for them. It is
        # replaced as a whole, because several threads may take steps.
        self._ready: tuple[int, torch.device | None, tuple[Tensor, ...], Any] = (-1, None, (), None)

    def table(self, device: torch.device) -> Tensor:
        """The plan's table on a device."""
        return DevicePlan.of(self.plan, device).table

    def continues(self, call: int) -> bool:
        """Whether a call, or a later one, reads slots that were written before it."""
        return not self.plan.enterable(self.calls[call].rows[0])

    def single(self, call: int) -> int | None:
        """The row of a call that has one row; None for other calls, and after the last one."""
        return self._single[call] if call < len(self._single) else None

    def launch_like(
        self, x: Tensor, output: Tensor, *, with_x0: bool
    ) -> tuple[tuple[Tensor, ...], Callable[[Sequence[Any]], None] | None]:
        """What launches a row with a network call for tensors like these, and the rows' numbers.

        It takes the values that `execute` passes to a bound step, without noise, and checks none of
        them. None where each call must be checked.
        """
        _, _, rows, steps = self._ready
        slots = x if self.slots else None  # whether there are any is all that counts
        values = (x, output, None, 0, rows[0], slots, slots, x, x if with_x0 else None)
        return rows, steps[True].launch_of(values)

    def execute(
        self,
        call: int,
        x: Tensor,
        output: Tensor,
        *,
        noise: Tensor | Callable[[int], Tensor | None] | None,
        seed: int | None,
        slots: Tensor | None,
        slots_out: Tensor | None,
        with_x0: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Executes the rows of a network call.

        Args:
            call: its index in `calls`.
            x: [B, …] the state.
            output: the network's output.
            noise: [B, …] for rows that draw noise, or a function that returns it for a row; None
                for the noise contract's with `seed`.
            slots, slots_out: compute type [S, B, …], the slots that are read and written; different
                tensors, so that a step can be taken again.
            with_x0: whether the prediction of x0 is returned.

        Returns:
            (next x, x0 or None) in x's dtype, and the new slots: `slots_out`, or where autograd
            records a new tensor. Then all of them are differentiable.
        """
        records = torch.is_grad_enabled() and (
            x.requires_grad or output.requires_grad or (slots is not None and slots.requires_grad)
        )
        batch, device, rows, steps = self._ready
        if batch != x.shape[0] or device != x.device:
            rows, steps = self._prepare(x)
        x0 = None
        for row in self.calls[call].rows:
            calls = self._network[row]
            row_output = output if calls else None
            # Off the CPU a launch must have what any row of the plan reads, so a row that draws
            # nothing has a seed too
            row_noise, row_seed = (noise, seed) if self._draws[row] else (None, 0)
            if callable(row_noise):
                row_noise = row_noise(row)
            if records:
                x, x0, slots_out = self._differentiable(
                    x, row_output, rows[row], row_noise, row_seed, slots, slots_out, with_x0
                )
            else:
                x_s = torch.empty_like(x, memory_format=torch.contiguous_format)
                if with_x0 and calls:
                    x0 = torch.empty_like(x_s)
                step = steps[calls]
                step(x, row_output, row_noise, row_seed, rows[row], slots, slots_out, x_s, x0)
                if slots_out is not None:  # the others are new
                    increment_version(slots_out)
                x = x_s
            if slots is not None:
                slots = slots_out  # a second row continues from the first one's slots
        return x, x0, slots_out

    @outside_inference  # what is kept may meet autograd later
    def _prepare(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[BoundStep, BoundStep]]:
        """For batches like x: every row's number as int64 [B], and the device's bound steps."""
        device = x.device
        numbers = torch.arange(len(self.plan.table), device=device)
        rows = numbers[:, None].expand(-1, x.shape[0]).contiguous().unbind()
        if device not in self._steps:
            fixed = StepArguments(x, None, self.table(device), rows[0])
            without, with_call = (
                fixed._replace(used=used).bind(*_MOVING, own=_OWN) for used in self._used
            )
            self._steps[device] = without, with_call
        steps = self._steps[device]
        self._ready = x.shape[0], device, rows, steps
        return rows, steps

    def _differentiable(
        self,
        x: Tensor,
        output: Tensor | None,
        row: Tensor,
        noise: Tensor | None,
        seed: int | None,
        slots: Tensor | None,
        slots_out: Tensor | None,
        with_x0: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A row through the op, which is differentiable and writes into no given tensors.

        The second result is x0, or slot 1 of a class that returns it from its steps (then the plan
        reads no slots). A second row, which has this result as its next x, computes it. The third
        result are the new slots.
        """
        table, used = self.table(x.device), self._used[output is not None]
        only_written = slots is None and slots_out is not None
        plain = table
        if only_written:
            plain, used = table.clone(), used & _BEFORE_SLOTS
            plain[:, _FIRST_OF_SLOTS:] = 0.0
        result = reverse_step(x, output, plain, row, slots=slots, noise=noise, seed=seed, used=used)
        if slots is None:
            assert isinstance(result, Tensor)
            x_s = result
        else:
            assert isinstance(result, tuple)
            x_s, slots_out = result
        if not with_x0 and not only_written:
            return x_s, None, slots_out
        second = table.clone()
        second[:, _FIRST_OF_SLOTS:] = 0.0
        of_x = [INDEX[f"x.{operand}"] for operand in OPERANDS]
        second[:, of_x] = 0.0
        used &= _BEFORE_SLOTS & ~columns(*(f"x.{operand}" for operand in OPERANDS))
        if only_written:
            second[:, of_x] = table[:, [INDEX[f"s1.{operand}"] for operand in OPERANDS]]
            used |= columns("x.x", "x.x0", "x.out")
        else:
            second[:, INDEX["x.x0"]] = 1.0
            used |= columns("x.x0")
        shown = reverse_step(x, output, second, row, used=used)
        assert isinstance(shown, Tensor)
        return x_s, shown, slots_out
