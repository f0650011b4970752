"""`reparameterize`: a differentiable draw of N(mean, exp(logvar)); no noise is stored."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..backend import choice
from . import autograd, common, formulas

_NOISE = "SymInt seed, Tensor? seeds, Tensor? sample_ids, SymInt step, int stream, bool fast"
_ARGUMENTS = f"Tensor mean, Tensor logvar, {_NOISE}"


def _launch_out(mean, logvar, seed, seeds, ids, step, stream, fast, out):
    launch = choice.launcher("reparameterize", mean.device)
    launch(
        out,
        mean.contiguous(),
        logvar.contiguous(),
        common.unsigned(seed),
        seeds,
        ids,
        step,
        stream,
        fast,
    )


def _output(mean, *_):
    return torch.empty(mean.shape, dtype=mean.dtype, device=mean.device)


def _launch(mean, logvar, seed, seeds, ids, step, stream, fast):
    out = _output(mean)
    _launch_out(mean, logvar, seed, seeds, ids, step, stream, fast, out)
    return out


def _launch_backward(grad, logvar, seed, seeds, ids, step, stream, fast):
    g_mean, g_logvar = _grads(grad, logvar, seed, seeds, ids, step, stream, fast)
    launch = choice.launcher("reparameterize_backward", grad.device)
    launch(
        g_mean,
        g_logvar,
        grad.contiguous(),
        logvar.contiguous(),
        common.unsigned(seed),
        seeds,
        ids,
        step,
        stream,
        fast,
    )
    return g_mean, g_logvar


def _grads(grad, logvar, *_):
    return tuple(torch.empty(grad.shape, dtype=v.dtype, device=grad.device) for v in (grad, logvar))


common.define("reparameterize", f"({_ARGUMENTS}) -> Tensor", _launch)
common.define("reparameterize_out", f"({_ARGUMENTS}, Tensor(a!) out) -> ()", _launch_out)
common.define(
    "reparameterize_backward",
    f"(Tensor grad, Tensor logvar, {_NOISE}) -> (Tensor, Tensor)",
    _launch_backward,
)
common.register_fake("reparameterize", _output)
common.register_fake("reparameterize_out", lambda *_: None)
common.register_fake("reparameterize_backward", _grads)


def _save(ctx, inputs, output):
    mean, logvar, seed, seeds, ids, step, stream, fast = inputs
    ctx.save_for_backward(logvar, seeds, ids)
    ctx.counter = (seed, step, stream, fast)


def _backward(ctx, grad):
    logvar, seeds, ids = ctx.saved_tensors
    seed, step, stream, fast = ctx.counter
    if torch.is_grad_enabled():
        # the mean's value plays no part in the gradients
        inputs = (
            torch.zeros_like(grad).requires_grad_(),
            logvar,
            seed,
            seeds,
            ids,
            step,
            stream,
            fast,
        )
        return tuple(
            autograd.by_formula(formulas.reparameterize, inputs, ctx.needs_input_grad, grad)
        )
    g_mean, g_logvar = _inner(grad, logvar, seed, seeds, ids, step, stream, fast)
    return g_mean, g_logvar, *(None,) * 6


_inner = autograd.inner("reparameterize_backward", _launch_backward)
_functional = autograd.differentiable(
    "reparameterize", _launch, _save, _backward, formulas.reparameterize
)
_into = torch.ops.fastdiff.reparameterize_out.default


def reparameterize(
    mean: Tensor,
    logvar: Tensor,
    *,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
    stream: int = 3,
    mode: str = "exact",
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draws z = mean + exp(logvar/2) eps, eps ~ N(0, I) (Kingma & Welling 2014, section 2.4).

    Args:
        mean: [B, …] floating; z has its dtype and shape.
        logvar: log sigma², broadcastable to mean, any floating dtype.
        seed, sample_ids, step, stream, mode, backend: see `randn`.
        out: where to write z, contiguous and like mean; no gradient is recorded.

    Gradients flow to mean and logvar; the backward pass regenerates eps.

    Raises:
        IndexError: sample_ids outside [0, 2**56) (CPU; other devices give NaN for that sample).
        ValueError, TypeError: for other arguments.
    """
    where = "reparameterize"
    common.batched(where, "mean", mean)
    common.floating(where, "logvar", logvar)
    common.same_device(where, "logvar", logvar, mean, "mean")
    logvar = common.broadcast(where, "logvar", logvar, mean.shape)
    common.sized(where, common.elements(mean.shape))
    draw = (seed, sample_ids, step, stream, mode)
    arguments = (mean, logvar, *common.noise_arguments(where, *draw, mean, "mean"))
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*arguments)
        common.written(where, out, mean, (mean, logvar))
        _into(*arguments, out)
        return out
