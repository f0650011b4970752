"""`step_log_prob` on torch: the log-probability of a step that a row has drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...table import OPERANDS
from . import log_prob
from .common import by_sample, per_sample
from .reverse_step import Row, evaluate, vjp

WHERE = "step_log_prob"
ROW_ERROR = (
    f"fastdiff.{WHERE}: expected row in [0, {{size}}), got {{value}} at index {{at}}. Rows belong"
    " to the table."
)


def step_log_prob(step: Any, mean: bool) -> None:
    """Writes `step.log_prob_out`; `step` is a checked StepArguments, with x_s in place of `out`."""
    r = evaluate(step, ROW_ERROR, scored=True, where=WHERE)
    value = log_prob.of_samples(r, mean_of(r), step.out, average=mean)
    if r.valid is not None:
        value = torch.where(r.valid, value, torch.nan)
    step.log_prob_out.copy_(value)


def mean_of(r: Row) -> Tensor:
    """Returns the next x without its noise."""
    return r.combine([(f"x.{o}", r.operands[o]) for o in OPERANDS[:-1]])


def gradients(
    grad: Tensor, step: Any, mean: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Returns the gradients to (x_s, x_t, model_output, slots).

    A sample's rescale factor and dynamic threshold count as constants, as in `vjp`.
    """
    r = evaluate(step, scored=True)
    y, inverse = log_prob.standardised(r, mean_of(r), step.out)
    if r.valid is not None:
        grad = torch.where(r.valid, grad, torch.nan)
    g = per_sample(grad / max(by_sample(y).shape[1], 1) if mean else grad, y)
    to_mean = g * (y * inverse)
    to_half = None if r.half_logvar is None else g * (y * y - 1.0)
    to_x, to_output, to_slots = vjp(r, step, to_mean, None, to_half)
    return (-to_mean).to(step.out.dtype), to_x, to_output, to_slots
