"""`q_sample`: forward noising x_t = alpha_t x0 + sigma_t eps with passed or regenerated noise."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from ..backend import choice
from ..backend.eager.common import by_sample
from ..backend.eager.q_sample import coefficients
from . import autograd, common, formulas

_ARGUMENTS = (
    "Tensor x0, Tensor? t, Tensor alpha, Tensor sigma, Tensor? noise, SymInt seed,"
    " Tensor? seeds, Tensor? sample_ids, SymInt step, int stream, bool fast"
)


def _launch_out(x0, t, alpha, sigma, noise, seed, seeds, sample_ids, step, stream, fast, out):
    noise = None if noise is None else noise.contiguous()
    launch = choice.launcher("q_sample", x0.device)
    launch(
        out,
        x0.contiguous(),
        t,
        alpha,
        sigma,
        noise,
        common.unsigned(seed),
        seeds,
        sample_ids,
        step,
        stream,
        fast,
    )


def _launch(x0, t, alpha, sigma, noise, seed, seeds, sample_ids, step, stream, fast):
    out = torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)
    _launch_out(x0, t, alpha, sigma, noise, seed, seeds, sample_ids, step, stream, fast, out)
    return out


common.define("q_sample", f"({_ARGUMENTS}) -> Tensor", _launch)
common.define("q_sample_out", f"({_ARGUMENTS}, Tensor(a!) out) -> ()", _launch_out)


@common.register_fake("q_sample")
def _(x0, *_):
    return torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)


@common.register_fake("q_sample_out")
def _(*_):
    return None


def _save(ctx, inputs, output):
    x0, t, alpha, sigma, noise, seed, seeds, sample_ids, step, stream, fast = inputs
    ctx.save_for_backward(x0, t, alpha, sigma, noise, seeds, sample_ids)
    ctx.counter = (seed, step, stream, fast)


def _backward(ctx, grad):
    """d x0 = alpha g, d noise = sigma g, d alpha = <g, x0>, d sigma = <g, eps>.

    The last two are summed into their tables.
    """
    x0, t, alpha, sigma, noise, seeds, sample_ids = ctx.saved_tensors
    seed, step, stream, fast = ctx.counter
    need = ctx.needs_input_grad
    a, s, _ = coefficients(x0, t, alpha, sigma)
    g = grad.to(a.dtype)
    g_x0 = (a * g).to(x0.dtype) if need[0] else None
    g_noise = (s * g).to(noise.dtype) if noise is not None and need[4] else None
    g_alpha = g_sigma = None
    if need[2]:
        g_alpha = _to_table(g * x0, t, alpha)
    if need[3]:
        if noise is None:
            # the forward pass stores no noise
            noise = torch.empty(x0.shape, dtype=torch.float32, device=x0.device)
            torch.ops.fastdiff.randn_out(noise, seed, seeds, sample_ids, step, stream, fast)
        g_sigma = _to_table(g * noise, t, sigma)
    return g_x0, None, g_alpha, g_sigma, g_noise, None, None, None, None, None, None


def _to_table(products: Tensor, t: Tensor | None, table: Tensor) -> Tensor:
    # float32 is summed without conversion, which would read and write twice the bytes
    rows = by_sample(products)
    sums = (rows if rows.dtype.itemsize > 2 else rows.float()).sum(1).to(table.dtype)
    return sums if t is None else torch.zeros_like(table).index_add(0, t, sums)


_functional = autograd.differentiable("q_sample", _launch, _save, _backward, formulas.q_sample)
_into = torch.ops.fastdiff.q_sample_out.default


def q_sample(
    x0: Tensor,
    t: Tensor | None,
    alpha: Tensor | np.ndarray,
    sigma: Tensor | np.ndarray,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    step: int = 0,
    stream: int = 2,
    window: tuple[int, int] | None = None,
    mode: str = "exact",
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Samples q(x_t | x0) = N(alpha_t x0, sigma_t² I) (Ho et al. 2020, eq. 4).

        x_t = alpha_t x0 + sigma_t eps

    Args:
        x0: [B, …] floating; the result has its dtype and shape.
        t: int64 [B] in [0, T), with alpha and sigma [T]; or None, with alpha and sigma [B]
            (continuous time).
        alpha, sigma: float64 tensors; NumPy's arrays, such as those of a `Schedule`, are copied to
            the device of x0.
        noise: eps, like x0; None: the noise of seed, sample_ids, step and stream, as `randn`
            draws it.
        seed, sample_ids, step, stream, window, mode, backend: see `randn`.
        out: where to write the result, contiguous and like x0; nothing is allocated and no gradient
            is recorded.

    Gradients flow to x0, noise, alpha and sigma. The backward pass draws regenerated noise again;
    it is never stored.

    Raises:
        IndexError: t outside [0, T) or, where noise is drawn, sample_ids outside [0, 2**56) (CPU;
            other devices give NaN for that sample).
        ValueError, TypeError: for other arguments.
    """
    common.batched("q_sample", "x0", x0)
    batch = x0.shape[0]
    alpha, sigma = common.from_array(alpha, x0), common.from_array(sigma, x0)
    for name, table in (("alpha", alpha), ("sigma", sigma)):
        common.strided("q_sample", name, table)
        if table.dtype != torch.float64 or table.ndim != 1:
            raise TypeError(
                f"fastdiff.q_sample: expected {name} as a one-dimensional float64 tensor or array."
                " Use Schedule's."
            )
        common.same_device("q_sample", name, table, x0, "x0")
    common.shaped("q_sample", "sigma", sigma, alpha.shape if t is not None else (batch,))
    if t is None:
        common.shaped("q_sample", "alpha", alpha, (batch,))
    else:
        t = common.integers("q_sample", "t", t, batch, x0, "x0")
    if noise is not None:
        common.floating("q_sample", "noise", noise)
        common.shaped("q_sample", "noise", noise, x0.shape)
        common.same_device("q_sample", "noise", noise, x0, "x0")
    elif seed is None:
        raise ValueError(
            "fastdiff.q_sample: expected noise or seed, got neither. Pass seed= for reproducible"
            " noise."
        )
    common.sized("q_sample", common.elements(x0.shape))
    draw = (seed, sample_ids, step, stream, mode)
    *names, stream, fast = common.noise_arguments(
        "q_sample", *draw, x0, "x0", optional=noise is not None
    )
    stream = common.windowed("q_sample", stream, window, common.elements(x0.shape))
    arguments = (x0, t, alpha.contiguous(), sigma.contiguous(), noise, *names, stream, fast)
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*arguments)
        common.written("q_sample", out, x0, (x0, noise, alpha, sigma))
        _into(*arguments, out)
        return out
