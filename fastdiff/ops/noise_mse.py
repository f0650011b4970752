"""`noise_mse`: the weighted squared error against regenerated noise, which is never stored."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..backend import choice
from . import autograd, common, formulas

_NOISE = "SymInt seed, Tensor? seeds, Tensor? sample_ids, SymInt step, int stream, bool fast"
_ARGUMENTS = f"Tensor prediction, Tensor? weight, {_NOISE}"


def _launch_out(prediction, weight, seed, seeds, ids, step, stream, fast, out, workspace):
    launch = choice.launcher("noise_mse", prediction.device)
    dense = prediction.contiguous()
    launch(out, workspace, dense, weight, common.unsigned(seed), seeds, ids, step, stream, fast)


def _output(prediction, *_):
    return torch.empty(
        prediction.shape[0], dtype=common.compute_dtype(prediction), device=prediction.device
    )


def _launch(prediction, weight, seed, seeds, ids, step, stream, fast):
    out = _output(prediction)
    n = common.elements(prediction.shape)
    workspace = common.workspace_for(prediction.shape[0], n, out.dtype, out.device)
    _launch_out(prediction, weight, seed, seeds, ids, step, stream, fast, out, workspace)
    return out


def _launch_backward(grad, prediction, weight, seed, seeds, ids, step, stream, fast):
    dense = prediction.contiguous()
    result = torch.empty_like(dense)
    launch = choice.launcher("noise_mse_backward", prediction.device)
    launch(
        result,
        grad.contiguous(),
        dense,
        weight,
        common.unsigned(seed),
        seeds,
        ids,
        step,
        stream,
        fast,
    )
    return result


def _gradient(grad, prediction, *_):
    return torch.empty(prediction.shape, dtype=prediction.dtype, device=prediction.device)


common.define("noise_mse", f"({_ARGUMENTS}) -> Tensor", _launch)
common.define(
    "noise_mse_out", f"({_ARGUMENTS}, Tensor(a!) out, Tensor(b!)? workspace) -> ()", _launch_out
)
common.define("noise_mse_backward", f"(Tensor grad, {_ARGUMENTS}) -> Tensor", _launch_backward)
common.register_fake("noise_mse", _output)
common.register_fake("noise_mse_out", lambda *_: None)
common.register_fake("noise_mse_backward", _gradient)


def _save(ctx, inputs, output):
    prediction, weight, seed, seeds, ids, step, stream, fast = inputs
    ctx.save_for_backward(prediction, weight, seeds, ids)
    ctx.counter = (seed, step, stream, fast)


def _backward(ctx, grad):
    prediction, weight, seeds, ids = ctx.saved_tensors
    seed, step, stream, fast = ctx.counter
    if torch.is_grad_enabled():
        inputs = (prediction, weight, seed, seeds, ids, step, stream, fast)
        return tuple(autograd.by_formula(formulas.noise_mse, inputs, ctx.needs_input_grad, grad))
    result = _inner(grad, prediction, weight, seed, seeds, ids, step, stream, fast)
    return result, *(None,) * 7


_inner = autograd.inner("noise_mse_backward", _launch_backward)
_functional = autograd.differentiable("noise_mse", _launch, _save, _backward, formulas.noise_mse)
_into = torch.ops.fastdiff.noise_mse_out.default


def noise_mse(
    prediction: Tensor,
    *,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
    stream: int = 2,
    weight: Tensor | None = None,
    mode: str = "exact",
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Computes L_b = w_b mean_e (prediction - eps)², [B] (Ho et al. 2020, eq. 14).

    eps is the noise that `q_sample` draws with the same arguments.

    Args:
        prediction: [B, …] floating, the network's estimate of the noise.
        seed, sample_ids, step, stream, mode, backend: see `randn`; the same as for `q_sample`.
        weight: [B], w; None for 1. No gradient flows to it.
        out, workspace: where to write the result [B], and for samples of more than 1,024 elements
            a buffer of ceil(n/1024)·B values; nothing is allocated and no gradient recorded.

    Returns:
        [B] in float32 (float64 for float64); a sample's loss has the same bits in any batch. The
        gradient goes to the prediction; eps is regenerated for it, never stored.

    Raises:
        IndexError: sample_ids outside [0, 2**56) (CPU; other devices give NaN for that sample).
        ValueError, TypeError: for other arguments.
    """
    where = "noise_mse"
    common.batched(where, "prediction", prediction)
    batch, n, compute = (
        prediction.shape[0],
        common.elements(prediction.shape),
        common.compute_dtype(prediction),
    )
    if weight is not None:
        common.floating(where, "weight", weight)
        common.shaped(where, "weight", weight, (batch,))
        common.same_device(where, "weight", weight, prediction, "prediction")
        weight = weight.detach().to(compute).contiguous()
    common.sized(where, n)
    draw = (seed, sample_ids, step, stream, mode)
    noise = common.noise_arguments(where, *draw, prediction, "prediction")
    common.check_sum(where, out, workspace, prediction, batch, n, compute)
    arguments = (prediction, weight, *noise)
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*arguments)
        _into(*arguments, out, workspace)
        return out
