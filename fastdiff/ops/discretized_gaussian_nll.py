"""`discretized_gaussian_nll`: the likelihood of 8-bit data under a Gaussian.

The density is integrated over the bin of each level.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..backend import choice
from . import autograd, common, formulas

_ARGUMENTS = "Tensor x0, Tensor mean, Tensor log_scale"


def _launch_out(x0, mean, log_scale, out, workspace):
    views = [common.flat_view(v, x0.shape) for v in (x0, mean, log_scale)]
    choice.launcher("discretized_gaussian_nll", out.device)(out, workspace, *views)


def _output(x0, mean, log_scale):
    return torch.empty(
        x0.shape[0], dtype=common.compute_dtype(x0, mean, log_scale), device=x0.device
    )


def _launch(x0, mean, log_scale):
    out = _output(x0, mean, log_scale)
    n = common.elements(x0.shape)
    _launch_out(
        x0, mean, log_scale, out, common.workspace_for(out.shape[0], n, out.dtype, out.device)
    )
    return out


def _launch_backward(grad, x0, mean, log_scale):
    views = [common.flat_view(v, x0.shape) for v in (x0, mean, log_scale)]
    grads = _gradients(grad, x0, mean, log_scale)
    launch = choice.launcher("discretized_gaussian_nll_backward", grad.device)
    launch(*(g.view(views[0].shape) for g in grads), grad.contiguous(), *views)
    return grads


def _gradients(grad, x0, mean, log_scale):
    return tuple(torch.empty(x0.shape, dtype=v.dtype, device=x0.device) for v in (mean, log_scale))


common.define("discretized_gaussian_nll", f"({_ARGUMENTS}) -> Tensor", _launch)
common.define(
    "discretized_gaussian_nll_out",
    f"({_ARGUMENTS}, Tensor(a!) out, Tensor(b!)? workspace) -> ()",
    _launch_out,
)
common.define(
    "discretized_gaussian_nll_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor)",
    _launch_backward,
)
common.register_fake("discretized_gaussian_nll", _output)
common.register_fake("discretized_gaussian_nll_out", lambda *_: None)
common.register_fake("discretized_gaussian_nll_backward", _gradients)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    if torch.is_grad_enabled():
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        return tuple(autograd.by_formula(formulas.discretized_gaussian_nll, inputs, needed, grad))
    return None, *_inner(grad, *ctx.saved_tensors)


_inner = autograd.inner("discretized_gaussian_nll_backward", _launch_backward)
_functional = autograd.differentiable(
    "discretized_gaussian_nll", _launch, _save, _backward, formulas.discretized_gaussian_nll
)
_into = torch.ops.fastdiff.discretized_gaussian_nll_out.default


def discretized_gaussian_nll(
    x0: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    *,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Computes -log p(x0) in nats, p the Gaussian's mass on a level's bin (Ho et al. 2020, eq. 13).

        p = Π_e [Φ((c + 1/255)/s) - Φ((c - 1/255)/s)],   s = e^log_scale
        c = k/127.5 - 1 - mean,   k = round(127.5 (x0 + 1))

    The first and the last bin are open. Φ is exact: the result is finite wherever the true one is,
    also in the far tails and for narrow bins, and nothing is clamped.

    Args:
        x0: [B, …] floating in [-1, 1], 8-bit levels; values outside become the nearest
            level. No gradient flows to it.
        mean, log_scale: floating, broadcastable with x0; a value constant over a sample is read
            once.
        out, workspace: see `noise_mse`.
        backend: see `randn`.

    Returns:
        [B] in float32, float64 if any input is. Gradients flow to mean and log_scale.

    Raises:
        ValueError, TypeError: for other arguments.
    """
    where = "discretized_gaussian_nll"
    inputs = {"x0": x0, "mean": mean, "log_scale": log_scale}
    for name, value in inputs.items():
        common.floating(where, name, value)
        common.same_device(where, name, value, x0, "x0")
    shape = common.common_shape(where, inputs)
    wide = [v if v.shape == shape else v.expand(shape) for v in (x0, mean, log_scale)]
    common.check_sum(
        where, out, workspace, x0, shape[0], common.elements(shape), common.compute_dtype(*wide)
    )
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*wide)
        _into(*wide, out, workspace)
        return out
