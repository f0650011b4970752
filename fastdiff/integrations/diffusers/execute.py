"""One row of a run's plan on tensors: checked at the first call of a kind, then only launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import reverse_step
from ...ops.step import StepArguments, columns_used
from ...table import INDEX, OPERANDS
from .state import Run

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
"""What of a step changes from call to call."""


def execute(
    run: Run,
    row: int,
    x: Tensor,
    output: Tensor | None,
    noise: Tensor | None,
    seed: int | None,
    slots: Tensor | None,
    slots_out: Tensor | None,
    wants_x0: bool,
) -> tuple[Tensor, Tensor | None]:
    """(next x, x0) of a row, in x's dtype."""
    table, row_index = run.table(x.device), run.rows(x.shape[0], x.device)[row]
    if torch.is_grad_enabled() and (
        x.requires_grad or (output is not None and output.requires_grad)
    ):
        given: dict[str, Any] = {"noise": noise, "seed": seed, "used": run.plan.used}
        return _differentiable(table, row_index, x, output, slots, slots_out, wants_x0, given)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x0 = torch.empty(x.shape, dtype=x.dtype, device=x.device) if wants_x0 else None
    if x.device not in run.steps:
        step = StepArguments(x, output, table, row_index, used=run.plan.used)
        run.steps[x.device] = step.bind(*_MOVING)
    run.steps[x.device](x, output, row_index, slots, noise, seed, out, slots_out, x0)
    return out, x0


def _differentiable(
    table: Tensor,
    row: Tensor,
    x: Tensor,
    output: Tensor | None,
    slots: Tensor | None,
    slots_out: Tensor | None,
    wants_x0: bool,
    given: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The same for callers that differentiate through a step; the memory carries no gradient."""
    written = slots is None and slots_out is not None  # slot 1 is for the caller alone
    plain = table.clone()
    plain[:, INDEX["s1.x"] :] = 0.0
    if written:
        given["used"] = columns_used(plain)
    result: Any = reverse_step(x, output, plain if written else table, row, slots=slots, **given)
    x_s, fresh = result if slots is not None else (result, None)
    if fresh is not None:
        slots_out.copy_(fresh.detach())  # type: ignore[union-attr]
    if not wants_x0 and not written:
        return x_s, None
    nexts = [INDEX[f"x.{operand}"] for operand in OPERANDS]
    shown = plain.clone()  # rows whose next x is what is shown
    shown[:, nexts] = 0.0
    if written:
        shown[:, nexts] = table[:, [INDEX[f"s1.{operand}"] for operand in OPERANDS]]
    else:
        shown[:, INDEX["x.x0"]] = 1.0
    second: Any = reverse_step(x, output, shown, row)
    return x_s, second
