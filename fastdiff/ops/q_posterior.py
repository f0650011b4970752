"""`q_posterior`: mean, variance and log-variance of q(x_{t-1} | x_t, x0)."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from ..backend import choice
from ..backend.eager.common import per_sample
from ..backend.eager.q_posterior import coefficients
from . import autograd, common, formulas

_ARGUMENTS = "Tensor x0, Tensor x_t, Tensor t, Tensor alphas_cumprod"
_OUTPUTS = "Tensor(a!) mean, Tensor(b!) variance, Tensor(c!) log_variance"


def _launch_out(x0, x_t, t, alphas_cumprod, mean, variance, log_variance):
    launch = choice.launcher("q_posterior", x0.device)
    launch(mean, variance, log_variance, x0.contiguous(), x_t.contiguous(), t, alphas_cumprod)


def _outputs(x0, x_t, t, alphas_cumprod):
    mean = torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)
    compute, batch = common.compute_dtype(x0), x0.shape[0]
    return mean, *(torch.empty(batch, dtype=compute, device=x0.device) for _ in range(2))


def _launch(x0, x_t, t, alphas_cumprod):
    outputs = _outputs(x0, x_t, t, alphas_cumprod)
    _launch_out(x0, x_t, t, alphas_cumprod, *outputs)
    return outputs


common.define("q_posterior", f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _launch)
common.define("q_posterior_out", f"({_ARGUMENTS}, {_OUTPUTS}) -> ()", _launch_out)
common.register_fake("q_posterior", _outputs)
common.register_fake("q_posterior_out", lambda *_: None)


def _save(ctx, inputs, output):
    x0, x_t, t, alphas_cumprod = inputs
    ctx.save_for_backward(t, alphas_cumprod)
    ctx.dtypes = x0.dtype, x_t.dtype


def _backward(ctx, grad, *_):
    """The mean is linear in x0 and x_t."""
    t, alphas_cumprod = ctx.saved_tensors
    wide = [per_sample(c, grad) for c in coefficients(t, alphas_cumprod)[:2]]
    compute = common.compute_dtype(grad)
    grads = [
        (c.to(compute) * grad).to(dtype) if needed else None
        for c, dtype, needed in zip(wide, ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
    ]
    return *grads, None, None


_functional = autograd.differentiable(
    "q_posterior", _launch, _save, _backward, formulas.q_posterior
)
_into = torch.ops.fastdiff.q_posterior_out.default


def q_posterior(
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor | np.ndarray,
    *,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the posterior q(x_{t-1} | x_t, x0) = N(mean, variance I) (Ho et al. 2020, eq. 6, 7).

        mean = sqrt(ᾱ_{t-1}) β_t/(1 - ᾱ_t) x0 + sqrt(α_t) (1 - ᾱ_{t-1})/(1 - ᾱ_t) x_t
        variance = β_t (1 - ᾱ_{t-1})/(1 - ᾱ_t),   α_t = ᾱ_t/ᾱ_{t-1},   β_t = 1 - α_t,   ᾱ_{-1} = 1

    Args:
        x0: [B, …] floating; x_t: like it in any floating dtype.
        t: int64 [B] in [0, T).
        alphas_cumprod: float64 [T], ᾱ; a NumPy array, such as a `Schedule`'s, is copied to the
            device of x0.
        out: where to write (mean, variance, log-variance); nothing is allocated and no gradient
            recorded.
        backend: see `randn`.

    Returns:
        mean [B, …] in x0's dtype; variance and log-variance [B] in float32 (float64 for float64).
        At t = 0 the variance is 0 and the log-variance that of t = 1. Gradients flow from the mean
        to x0 and x_t.

    Raises:
        IndexError: t outside [0, T) (CPU; other devices give NaN for that sample).
        ValueError, TypeError: for other arguments.
    """
    where = "q_posterior"
    common.batched(where, "x0", x0)
    common.floating(where, "x_t", x_t)
    common.shaped(where, "x_t", x_t, x0.shape)
    common.same_device(where, "x_t", x_t, x0, "x0")
    t = common.integers(where, "t", t, x0.shape[0], x0, "x0")
    table = common.from_array(alphas_cumprod, x0)
    common.strided(where, "alphas_cumprod", table)
    if table.dtype != torch.float64 or table.ndim != 1:
        raise TypeError(
            "fastdiff.q_posterior: expected alphas_cumprod as a one-dimensional float64 tensor or"
            " array. Use Schedule's."
        )
    common.same_device(where, "alphas_cumprod", table, x0, "x0")
    arguments = (x0, x_t, t, table.contiguous())
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*arguments)
        expected = ((x0.shape, x0.dtype), *(((x0.shape[0],), common.compute_dtype(x0)),) * 2)
        if not isinstance(out, (tuple, list)) or len(out) != 3:
            raise TypeError(
                f"fastdiff.{where}: expected out as the tensors (mean, variance, log_variance), got"
                f" {type(out).__name__}."
            )
        for name, value, (shape, dtype) in zip(
            ("mean", "variance", "log_variance"), out, expected, strict=True
        ):
            common.writable(where, name, value)
            common.shaped(where, name, value, shape)
            if value.dtype != dtype or not value.is_contiguous():
                raise ValueError(
                    f"fastdiff.{where}: expected a contiguous {name} of dtype {dtype}, got"
                    f" {value.dtype}."
                )
        _into(*arguments, *out)
        return out
