"""`gaussian_kl`: the KL divergence of diagonal Gaussians, per sample, in nats."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..backend import choice
from . import autograd, common, formulas

_ARGUMENTS = "Tensor mean1, Tensor logvar1, Tensor? mean2, Tensor? logvar2"


def _views(shape, *values):
    return [None if v is None else common.flat_view(v, shape) for v in values]


def _launch_out(mean1, logvar1, mean2, logvar2, out, workspace):
    choice.launcher("gaussian_kl", out.device)(
        out, workspace, *_views(mean1.shape, mean1, logvar1, mean2, logvar2)
    )


def _output(*values):
    return torch.empty(
        values[0].shape[0], dtype=common.compute_dtype(*values), device=values[0].device
    )


def _launch(mean1, logvar1, mean2, logvar2):
    out = _output(mean1, logvar1, mean2, logvar2)
    workspace = common.workspace_for(
        out.shape[0], common.elements(mean1.shape), out.dtype, out.device
    )
    _launch_out(mean1, logvar1, mean2, logvar2, out, workspace)
    return out


def _launch_backward(grad, mean1, logvar1, mean2, logvar2, need):
    values = (mean1, logvar1, mean2, logvar2)
    grads = _gradients(grad, *values, need)
    views = _views(mean1.shape, *values)
    wanted = [
        g.view(views[0].shape) if n and v is not None else None
        for g, n, v in zip(grads, need, values, strict=True)
    ]
    choice.launcher("gaussian_kl_backward", grad.device)(*wanted, grad.contiguous(), *views)
    return grads


def _gradients(grad, mean1, logvar1, mean2, logvar2, need):
    values = (mean1, logvar1, mean2, logvar2)
    return tuple(
        torch.empty(
            mean1.shape if n and v is not None else (0,),
            dtype=(mean1 if v is None else v).dtype,
            device=grad.device,
        )
        for v, n in zip(values, need, strict=True)
    )


common.define("gaussian_kl", f"({_ARGUMENTS}) -> Tensor", _launch)
common.define(
    "gaussian_kl_out", f"({_ARGUMENTS}, Tensor(a!) out, Tensor(b!)? workspace) -> ()", _launch_out
)
common.define(
    "gaussian_kl_backward",
    f"(Tensor grad, {_ARGUMENTS}, bool[] need) -> (Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
)
common.register_fake("gaussian_kl", _output)
common.register_fake("gaussian_kl_out", lambda *_: None)
common.register_fake("gaussian_kl_backward", _gradients)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    if torch.is_grad_enabled():
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        return tuple(autograd.by_formula(formulas.gaussian_kl, inputs, needed, grad))
    need = [
        n and v is not None for n, v in zip(ctx.needs_input_grad, ctx.saved_tensors, strict=True)
    ]
    grads = _inner(grad, *ctx.saved_tensors, need)
    return tuple(g if n else None for g, n in zip(grads, need, strict=True))


_inner = autograd.inner("gaussian_kl_backward", _launch_backward)
_functional = autograd.differentiable(
    "gaussian_kl", _launch, _save, _backward, formulas.gaussian_kl
)
_into = torch.ops.fastdiff.gaussian_kl_out.default


def gaussian_kl(
    mean1: Tensor,
    logvar1: Tensor,
    mean2: Tensor | None = None,
    logvar2: Tensor | None = None,
    *,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Computes KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))) in nats, per sample.

        ½ Σ_e (e^d - 1 - d + (mean1 - mean2)² e^-logvar2),   d = logvar1 - logvar2

    (Kingma & Welling 2014, appendix B.)

    Args:
        mean1, logvar1, mean2, logvar2: floating tensors that broadcast to one shape [B, …]; logvar
            = log sigma². A value that is constant over a sample or the batch is read once, never
            expanded. The second Gaussian defaults to N(0, I).
        out, workspace: see `noise_mse`.
        backend: see `randn`.

    Returns:
        [B] in float32, float64 if any input is; e^d - 1 - d has no cancellation near d = 0, and a
        sample's KL has the same bits in any batch. Gradients flow to all inputs.

    Raises:
        ValueError, TypeError: for other arguments.
    """
    where = "gaussian_kl"
    if (mean2 is None) != (logvar2 is None):
        raise ValueError(
            "fastdiff.gaussian_kl: expected mean2 and logvar2 together or neither (then N(0, I)),"
            " got one."
        )
    inputs = {"mean1": mean1, "logvar1": logvar1}
    if mean2 is not None and logvar2 is not None:
        inputs |= {"mean2": mean2, "logvar2": logvar2}
    for name, value in inputs.items():
        common.floating(where, name, value)
        common.same_device(where, name, value, mean1, "mean1")
    shape = common.common_shape(where, inputs)
    wide = [
        v if v is None or v.shape == shape else v.expand(shape)
        for v in (mean1, logvar1, mean2, logvar2)
    ]
    common.check_sum(
        where, out, workspace, mean1, shape[0], common.elements(shape), common.compute_dtype(*wide)
    )
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*wide)
        _into(*wide, out, workspace)
        return out
