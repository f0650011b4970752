"""Traced plans, and the execution of their rows one network call at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops import reverse_step
from ...ops.bound_step import BoundStep
from ...ops.common import columns_used
from ...ops.step import StepArguments
from ...sampling.device_plan import DevicePlan
from ...sampling.stepper import draws_noise
from ...solvers import Plan
from ...table import INDEX, OPERANDS

_MOVING = (
    "x_t",
    "model_output",
    "row",
    "slots",
    "noise",
    "seed",
    "out",
    "slots_out",
    "x0_out",
)
"""The arguments of a row that change from step to step."""


class Call(NamedTuple):
    """The rows that belong to a network call."""

    rows: list[int]  # those without a network call before it, and its own
    draws: bool  # whether one of them draws noise


class TracedPlan:
    """A plan, with its rows by network call and its table on the devices of the samples.

    Attributes:
        plan: the plan. calls: its network calls in their order. slots: how many slots it needs.
    """

    def __init__(self, plan: Plan):
        self.plan, self.slots = plan, plan.slots
        self._network = [bool(v) for v in plan.column("network")]
        self._draws = draws_noise(plan)
        self.calls: list[Call] = []
        rows: list[int] = []
        for row in range(len(plan)):
            rows.append(row)
            if self._network[row]:
                self.calls.append(Call(rows, any(self._draws[r] for r in rows)))
                rows = []
        self._steps: dict[torch.device, BoundStep] = {}
        # batch, device, and what `_prepare` returns for them; replaced as a whole, for threads
        self._ready: tuple[int, torch.device | None, tuple[Tensor, ...], Any] = (-1, None, (), None)

    def table(self, device: torch.device) -> Tensor:
        """The plan's table on a device."""
        return DevicePlan.of(self.plan, device).table

    def execute(
        self,
        call: int,
        x: Tensor,
        output: Tensor,
        *,
        noise: Tensor | None,
        seed: int | None,
        slots: Tensor | None,
        slots_out: Tensor | None,
        with_x0: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Executes the rows of a network call.

        Args:
            call: its number.
            x: [B, …] the state.
            output: the network's output.
            noise: [B, …] for rows that draw noise; None for the noise contract's with `seed`.
            slots, slots_out: compute type [S, B, …], the slots that are read and written.
            with_x0: whether the prediction of x0 is returned.

        Returns:
            (next x, x0 or None) in x's dtype. Where autograd records they are differentiable; the
            slots carry no gradient.
        """
        records = torch.is_grad_enabled() and (x.requires_grad or output.requires_grad)
        batch, device, rows, step = self._ready
        if batch != x.shape[0] or device != x.device:
            rows, step = self._prepare(x)
        x0 = None
        for row in self.calls[call].rows:
            calls = self._network[row]
            row_output = output if calls else None
            row_noise, row_seed = (noise, seed) if self._draws[row] else (None, None)
            if records:
                x, x0 = self._differentiable(
                    x, row_output, rows[row], row_noise, row_seed, slots, slots_out, with_x0
                )
            else:
                x_s = torch.empty_like(x, memory_format=torch.contiguous_format)
                if with_x0 and calls:
                    x0 = torch.empty_like(x_s)
                step(x, row_output, rows[row], slots, row_noise, row_seed, x_s, slots_out, x0)
                x = x_s
            if slots is not None:
                slots = slots_out  # a second row continues from the first one's slots
        return x, x0

    def _prepare(self, x: Tensor) -> tuple[tuple[Tensor, ...], BoundStep]:
        """For batches like x: the number of every row, int64 [B] each, and the bound step."""
        device = x.device
        numbers = torch.arange(len(self.plan.table), device=device)
        rows = numbers[:, None].expand(-1, x.shape[0]).contiguous().unbind()
        if device not in self._steps:
            arguments = StepArguments(x, None, self.table(device), rows[0], used=self.plan.used)
            self._steps[device] = arguments.bind(*_MOVING)
        step = self._steps[device]
        self._ready = x.shape[0], device, rows, step
        return rows, step

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
    ) -> tuple[Tensor, Tensor | None]:
        """A row through the differentiable op, which takes no outputs.

        The second result is x0, or slot 1 where a class writes it for its users alone. Another row,
        with that as its next x, computes it.
        """
        table = self.table(x.device)
        only_written = slots is None and slots_out is not None
        plain, used = table, self.plan.used
        if only_written:
            plain = table.clone()
            plain[:, INDEX["s1.x"] :] = 0.0
            used = columns_used(plain)
        result = reverse_step(x, output, plain, row, slots=slots, noise=noise, seed=seed, used=used)
        if slots is None:
            assert isinstance(result, Tensor)
            x_s = result
        else:
            assert isinstance(result, tuple) and slots_out is not None
            x_s = result[0]
            slots_out.copy_(result[1].detach())
        if not with_x0 and not only_written:
            return x_s, None
        second = table.clone()
        second[:, INDEX["s1.x"] :] = 0.0
        of_x = [INDEX[f"x.{operand}"] for operand in OPERANDS]
        second[:, of_x] = 0.0
        if only_written:
            second[:, of_x] = table[:, [INDEX[f"s1.{operand}"] for operand in OPERANDS]]
        else:
            second[:, INDEX["x.x0"]] = 1.0
        shown = reverse_step(x, output, second, row)
        assert isinstance(shown, Tensor)
        return x_s, shown
