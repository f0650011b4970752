"""`step_log_prob`: the log-probability of a step that a row of a plan has drawn.

A stochastic row is x_s = mean(x_t, out, slots) + std z, a Gaussian; see kernels/README.md section
14. `reverse_step` writes the same number while it samples, with `log_prob_out`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backend import choice
from ..backend.eager.common import compute_dtype
from ..backend.eager.step_log_prob import gradients
from . import autograd, common, formulas
from .step import StepArguments, check_log_prob, check_workspace

WHERE = "step_log_prob"
REDUCTIONS = ("sum", "mean")
_ARGUMENTS = (
    "Tensor x_t, Tensor? model_output, Tensor x_s, Tensor table, Tensor row, Tensor? slots,"
    " Tensor? guidance, Tensor? gradient, int used, bool mean"
)
_KERNEL = (0, 1, 2, 5)  # the places of what has gradients without the formula
_FORMULA = (6, 7)


def _step(*flat: Any) -> StepArguments:
    """Returns the arguments as the launchers take them: x_s in place of the next x."""
    x_t, model_output, x_s, table, row, slots, guidance, gradient, used, out, workspace = flat
    return StepArguments(
        x_t,
        model_output,
        table,
        row,
        slots,
        guidance=guidance,
        gradient=gradient,
        used=used,
        out=x_s.contiguous(),
        log_prob_out=out,
        workspace=workspace,
    )


def _launch_out(*flat: Any) -> None:
    *inputs, mean, out, workspace = flat
    launch = choice.launcher(WHERE, out.device)
    launch(_step(*inputs, out, workspace).launchable(), mean)


def _output(x_t: Tensor, *_: Any) -> Tensor:
    return torch.empty(x_t.shape[0], dtype=compute_dtype(x_t), device=x_t.device)


def _launch(*flat: Any) -> Tensor:
    out = _output(*flat)
    _launch_out(*flat, out, None)
    return out


common.define(WHERE, f"({_ARGUMENTS}) -> Tensor", _launch)
common.define(
    f"{WHERE}_out", f"({_ARGUMENTS}, Tensor(a!) out, Tensor(b!)? workspace) -> ()", _launch_out
)
common.register_fake(WHERE, _output)
common.register_fake(f"{WHERE}_out", lambda *_: None)


def _save(ctx, inputs, output):
    *tensors, ctx.used, ctx.mean = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    inputs = [*ctx.saved_tensors, ctx.used, ctx.mean]
    step = _step(*inputs[:-1], None, None)
    others = any(ctx.needs_input_grad[i] for i in _FORMULA)
    if torch.is_grad_enabled() or step.whole_samples or others:
        needed = [
            ctx.needs_input_grad[i] and i in (*_KERNEL, *_FORMULA) for i in range(len(inputs))
        ]
        return tuple(autograd.by_formula(formulas.step_log_prob, inputs, needed, grad))
    to_x_s, to_x, to_output, to_slots = gradients(grad, step, ctx.mean)
    result: list[Tensor | None] = [None] * len(inputs)
    for place, value in zip(_KERNEL, (to_x, to_output, to_x_s, to_slots), strict=True):
        if ctx.needs_input_grad[place]:
            result[place] = value
    return tuple(result)


_functional = autograd.differentiable(WHERE, _launch, _save, _backward, formulas.step_log_prob)
_into = getattr(torch.ops.fastdiff, f"{WHERE}_out").default


def step_log_prob(
    x_t: Tensor,
    model_output: Tensor | None,
    x_s: Tensor,
    table: Tensor | np.ndarray,
    row: Tensor,
    *,
    slots: Tensor | None = None,
    guidance: Tensor | None = None,
    gradient: Tensor | None = None,
    reduce: str = "sum",
    used: int | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Computes log N(x_s; mean, std² I) in nats, per sample: how likely row[b] was to draw x_s.

        mean = c_x x_t + c_x0 x0 + c_out out + Σ c_k slot_k,   std = |c_z|

    for the row x_s = mean + c_z z that `reverse_step` executes; with learned variance std is
    |c_z| exp(½ logvar) for each element (Nichol & Dhariwal 2021, eq. 15). Policy gradients need it:
    a sampler is a policy whose action in state (x_t, t) is x_s (Black et al. 2024).

    Args:
        x_t, model_output, table, row, slots, guidance, gradient, used, backend: see `reverse_step`.
        x_s: like x_t in any floating dtype, the next state; without rounding errors of its own
            where it is the one that `reverse_step` stored.
        reduce: "sum" over the elements of a sample, or "mean", which is the sum divided by their
            number.
        out: [B] in the compute type, where to write the result; nothing is allocated with a
            workspace, and no gradient recorded.
        workspace: [R, B] in the compute type, with R from
            `fastdiff.ops.step.workspace_rows(elements, dtype, log_prob=True)`; None allocates it.

    Returns:
        [B] in float32 (float64 for a float64 x_t), with the bits that `reverse_step` writes to
        `log_prob_out` on the same backend; a sample's have no part in the batch around it.
        Gradients flow to x_t, model_output, x_s, slots, guidance and gradient.

    Raises:
        IndexError: row outside the table (CPU; other devices give NaN for that sample).
        ValueError: a row whose next x has no noise, so that x_s has no density (CPU; other devices
            give NaN for that sample), or other wrong arguments.
        TypeError: arguments of a wrong type.
    """
    table = common.from_array(table, x_t)
    arguments = StepArguments(
        x_t, model_output, table, row, slots, guidance=guidance, gradient=gradient, used=used
    ).check(WHERE, scored=True)
    common.floating(WHERE, "x_s", x_s)
    common.shaped(WHERE, "x_s", x_s, x_t.shape)
    common.same_device(WHERE, "x_s", x_s, x_t, "x_t")
    if not isinstance(reduce, str) or reduce not in REDUCTIONS:
        got = repr(reduce) if isinstance(reduce, str) else type(reduce).__name__
        raise ValueError(f"fastdiff.{WHERE}: expected reduce in {list(REDUCTIONS)}, got {got}.")
    inputs = (
        x_t,
        model_output,
        x_s,
        arguments.table,
        arguments.row,
        slots,
        arguments.guidance,
        gradient,
    )
    if out is None and workspace is not None:
        raise ValueError(f"fastdiff.{WHERE}: expected out together with workspace. Pass out=.")
    if out is not None:
        check_log_prob(WHERE, "out", out, x_t, inputs)
        if workspace is not None:
            check_workspace(WHERE, workspace, x_t, log_prob=True)
    flat = (*inputs, arguments.used, reduce == "mean")
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*flat)
        written = [out] if workspace is None else [out, workspace]
        if common.unobserved(*(v for v in inputs if v is not None), *written):
            _launch_out(*flat, out, workspace)  # the dispatcher costs more than a small sample
            if not out.is_inference():
                torch.autograd.graph.increment_version(written)
        else:
            _into(*flat, out, workspace)
        return out
