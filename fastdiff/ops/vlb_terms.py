"""`vlb_terms`: a term of the variational bound from the network's output in one pass."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from ..backend import choice
from ..table import VLB_COLUMNS
from . import autograd, common, formulas

_ARGUMENTS = "Tensor x0, Tensor x_t, Tensor model_output, Tensor table, Tensor t"


def _launch_out(x0, x_t, model_output, table, t, out, workspace):
    launch = choice.launcher("vlb_terms", x0.device)
    launch(out, workspace, x0.contiguous(), x_t.contiguous(), model_output.contiguous(), table, t)


def _output(x0, *_):
    return torch.empty(x0.shape[0], dtype=common.compute_dtype(x0), device=x0.device)


def _launch(x0, x_t, model_output, table, t):
    out = _output(x0)
    workspace = common.workspace_for(x0.shape[0], common.elements(x0.shape), out.dtype, out.device)
    _launch_out(x0, x_t, model_output, table, t, out, workspace)
    return out


def _launch_backward(grad, x0, x_t, model_output, table, t):
    dense = model_output.contiguous()
    result = torch.empty_like(dense)
    launch = choice.launcher("vlb_terms_backward", x0.device)
    launch(result, grad.contiguous(), x0.contiguous(), x_t.contiguous(), dense, table, t)
    return result


def _gradient(grad, x0, x_t, model_output, *_):
    return torch.empty(model_output.shape, dtype=model_output.dtype, device=model_output.device)


common.define("vlb_terms", f"({_ARGUMENTS}) -> Tensor", _launch)
common.define(
    "vlb_terms_out", f"({_ARGUMENTS}, Tensor(a!) out, Tensor(b!)? workspace) -> ()", _launch_out
)
common.define("vlb_terms_backward", f"(Tensor grad, {_ARGUMENTS}) -> Tensor", _launch_backward)
common.register_fake("vlb_terms", _output)
common.register_fake("vlb_terms_out", lambda *_: None)
common.register_fake("vlb_terms_backward", _gradient)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    if torch.is_grad_enabled():
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        return tuple(autograd.by_formula(formulas.vlb_terms, inputs, needed, grad))
    result = _inner(grad, *ctx.saved_tensors)
    return None, None, result, None, None


_inner = autograd.inner("vlb_terms_backward", _launch_backward)
_functional = autograd.differentiable("vlb_terms", _launch, _save, _backward, formulas.vlb_terms)
_into = torch.ops.fastdiff.vlb_terms_out.default


def vlb_terms(
    x0: Tensor,
    x_t: Tensor,
    model_output: Tensor,
    table: Tensor | np.ndarray,
    t: Tensor,
    *,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Computes the bound's term L_{t-1} in nats, per sample (Ho et al. 2020, eq. 5).

        L_{t-1} = KL(q(x_{t-1}|x_t, x0) || p(x_{t-1}|x_t)),   at the first step -log p(x0|x_1)

    One pass converts the output to x0, clips it, forms the model's mean and (learned) log-variance
    and sums the term. The terms that both means have in common cancel exactly.

    Args:
        x0, x_t: [B, …] floating of one shape.
        model_output: like x_t in any floating dtype, twice the channels with learned variance
            (Nichol & Dhariwal 2021, eq. 15).
        table: float64 [T, 9] with the columns fastdiff.table.VLB_COLUMNS, made by
            `fastdiff.theory.likelihood.vlb_table`.
        t: int64 [B] in [0, T).
        out, workspace: see `noise_mse`.
        backend: see `randn`.

    Returns:
        [B] in nats, float32 (float64 for float64). The gradient goes to model_output.

    Raises:
        IndexError: t outside [0, T) (CPU; other devices give NaN for that sample).
        ValueError, TypeError: for other arguments.
    """
    where = "vlb_terms"
    common.batched(where, "x0", x0)
    for name, value in (("x_t", x_t), ("model_output", model_output)):
        common.floating(where, name, value)
        common.same_device(where, name, value, x0, "x0")
    common.shaped(where, "x_t", x_t, x0.shape)
    shapes = [tuple(x0.shape)]
    if x0.ndim > 1:
        shapes.append((x0.shape[0], 2 * x0.shape[1], *x0.shape[2:]))
    if tuple(model_output.shape) not in shapes:
        raise ValueError(
            f"fastdiff.{where}: expected model_output of shape {list(shapes[0])} or with twice the"
            f" channels, got {list(model_output.shape)}."
        )
    columns = len(VLB_COLUMNS)
    table = common.from_array(table, x0)
    common.strided(where, "table", table)
    if table.dtype != torch.float64 or table.ndim != 2 or table.shape[1] != columns:
        raise ValueError(
            f"fastdiff.{where}: expected table as float64 [T, {columns}], got"
            f" {str(table.dtype).removeprefix('torch.')} {list(table.shape)}. Use"
            " fastdiff.theory.likelihood.vlb_table."
        )
    common.same_device(where, "table", table, x0, "x0")
    t = common.integers(where, "t", t, x0.shape[0], x0, "x0")
    common.check_sum(
        where, out, workspace, x0, x0.shape[0], common.elements(x0.shape), common.compute_dtype(x0)
    )
    arguments = (x0, x_t, model_output, table.contiguous(), t)
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*arguments)
        _into(*arguments, out, workspace)
        return out
