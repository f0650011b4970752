"""`group_norm_silu`: group normalisation, conditioning and SiLU of activations in one pass."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..backend import choice
from ..backend.eager.group_norm_silu import chunks, group_norm_silu_backward
from ..whole import whole
from . import autograd, common, formulas

_ARGUMENTS = (
    "Tensor x, int groups, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? add,"
    " float eps, bool silu"
)
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _strides(x: Tensor) -> tuple[int, int, int] | None:
    """Returns the strides of x as [B, C, n]; any where x is empty.

    None where its positions are not one dimension, or where neither they nor the channels are
    dense.
    """
    if x.ndim == 4:  # the common case needs two tests only
        _, channels, height, width = x.shape
        if x.is_contiguous():
            return channels * height * width, height * width, 1
        if x.is_contiguous(memory_format=torch.channels_last):
            return channels * height * width, 1, channels
    if x.numel() == 0:
        return 1, 1, 1
    position, size = 1, 1
    for length, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if length == 1:
            continue
        if size == 1:
            position = stride
        elif stride != position * size:
            return None
        size *= length
    channel = x.stride(1) if x.shape[1] != 1 else position * size
    if size == 1:
        # no positions: dense channels are next to each other
        position = 1 if channel != 1 else max(x.shape[1], 1)
    if position < 1 or channel < 1 or (channel != 1 and position != 1):
        return None
    return x.stride(0), channel, position


def _as_stored(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Returns x and its strides; where no kernel takes the strides, a copy in x's memory format."""
    strides = _strides(x)
    if strides is None:
        last = x.ndim in _FORMATS and x.stride(1) == 1 and x.shape[1] > 1
        x = x.contiguous(memory_format=_FORMATS[x.ndim] if last else torch.contiguous_format)
        strides = _strides(x)
        assert strides is not None
    return x, strides


def _launch_to(out, to, x, strides, groups, weight, bias, scale, shift, add, eps, silu):
    """Launches into `out`; `to` and `strides` are the strides of out and x as [B, C, n]."""
    if out.numel() == 0:
        return
    batch, channels = x.shape[:2]
    flat = batch, channels, x.numel() // (batch * channels)
    workspace = statistics = None
    if choice.backend_for("group_norm_silu", x.device) in ("cuda", "triton"):
        compute = common.compute_dtype(x)
        workspace = torch.empty(
            2 * batch * chunks(flat[2]) * channels, dtype=compute, device=x.device
        )
        statistics = torch.empty(2 * batch * groups, dtype=compute, device=x.device)
    weight, bias = (None if v is None else common.dense(v) for v in (weight, bias))
    views = out.as_strided(flat, to), x.as_strided(flat, strides)
    launch = choice.launcher("group_norm_silu", x.device)
    launch(
        views[0],
        workspace,
        statistics,
        views[1],
        groups,
        weight,
        bias,
        scale,
        shift,
        add,
        eps,
        silu,
    )


def _launch_out(x, *arguments):
    *options, out = arguments
    x, strides = _as_stored(x)
    _launch_to(out, _strides(out), x, strides, *options)


def _output(x, *_):
    return _empty_like(_as_stored(x)[0])


def _empty_like(x: Tensor) -> Tensor:
    """Returns memory for the result, in x's memory format.

    Where samples share memory, torch's own choice may put the batch last, which no kernel takes.
    """
    out = torch.empty_like(x)
    if _strides(out) is None:
        last = x.ndim in _FORMATS and x.stride(1) == 1 and x.shape[1] > 1
        out = torch.empty_like(
            x, memory_format=_FORMATS[x.ndim] if last else torch.contiguous_format
        )
    return out


def _launch(x, *options):
    x, strides = _as_stored(x)
    out = _empty_like(x)
    to: Any = strides
    if out.stride() != x.stride():
        to = _strides(out)
        if (to[1] == 1) != (strides[1] == 1):  # kernels read and write in one order
            x, strides = _as_stored(x.contiguous())
    _launch_to(out, to, x, strides, *options)
    return out


common.define("group_norm_silu", f"({_ARGUMENTS}) -> Tensor", _launch)
common.define("group_norm_silu_out", f"({_ARGUMENTS}, Tensor(a!) out) -> ()", _launch_out)
common.register_fake("group_norm_silu", _output)
common.register_fake("group_norm_silu_out", lambda *_: None)


def _save(ctx, inputs, output):
    x, groups, weight, bias, scale, shift, add, eps, silu = inputs
    ctx.save_for_backward(x, weight, bias, scale, shift, add)
    ctx.constants = (groups, eps, silu)


def _backward(ctx, grad):
    x, weight, bias, scale, shift, add = ctx.saved_tensors
    groups, eps, silu = ctx.constants
    if x.numel() == 0:
        every = (x, None, weight, bias, scale, shift, add, None, None)
        return tuple(None if v is None else torch.zeros_like(v) for v in every)
    by = group_norm_silu_backward(grad, x, groups, weight, bias, scale, shift, add, eps, silu)
    inputs = (x, weight, bias, scale, shift, add)
    need = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4, 5, 6)]
    g = [
        v.to(like.dtype) if n and like is not None else None
        for v, like, n in zip(by, inputs, need, strict=True)
    ]
    return g[0], None, *g[1:], None, None


_functional = autograd.differentiable(
    "group_norm_silu", _launch, _save, _backward, formulas.group_norm_silu
)
_into = torch.ops.fastdiff.group_norm_silu_out.default


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    silu: bool = True,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Computes silu(((u - mean)/sqrt(var + eps)·weight + bias)(1 + scale) + shift), u = x + add.

    Group normalisation (Wu & He 2018, eq. 1–4), conditioned as in Dhariwal & Nichol 2021, section
    3. Mean and (biased) variance are those of a group of channels of one sample. It is what a
    residual block does between two convolutions, in one pass over memory instead of three or four.

    Args:
        x: [B, C, …] floating, channels last in memory or contiguous; other layouts are copied
            first. The result has its dtype and memory format.
        groups: divides C.
        weight, bias: [C], or None: 1 and 0. These and the following may be of any floating dtype.
        eps: at least 0.
        scale, shift: [B, C] conditioning, or None: 0. A half of a wider tensor (`chunk`) is read in
            place.
        add: [B, C], or None: 0; added to x first, as DDPM's residual blocks do with the time
            embedding.
        silu: False leaves the activation out.
        out: where to write the result: like x in shape, dtype and memory format, and either x
            itself or other memory; no gradient is recorded.
        backend: see `randn`.

    Statistics are computed in chunks of 64 positions in the compute type (float64 for float64, else
    float32), each around the chunk's mean, and combined in float64. So a large mean costs no
    precision, and a sample's result has the same bits at any batch size, position, memory format
    and thread count. Gradients flow to x, weight, bias, scale, shift and add.

    Raises:
        ValueError, TypeError: for other arguments.
    """
    where = "group_norm_silu"
    common.floating(where, "x", x)
    if x.ndim < 2:
        raise ValueError(
            f"fastdiff.{where}: expected x of shape [B, C, …], got {list(x.shape)}. Add the missing"
            " dimension."
        )
    batch, channels = x.shape[0], x.shape[1]
    count = whole(groups)
    if count is None:
        raise TypeError(
            f"fastdiff.{where}: expected groups as an int, got {type(groups).__name__}."
        )
    groups = count
    if groups < 1 or channels % groups:
        raise ValueError(
            f"fastdiff.{where}: expected groups that divide the {channels} channels, got {groups}."
        )
    try:
        eps = float(eps)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"fastdiff.{where}: expected eps as a number, got {type(eps).__name__}."
        ) from None
    if not eps >= 0:
        raise ValueError(f"fastdiff.{where}: expected eps of at least 0, got {eps}.")
    for name, value, shape in (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("scale", scale, (batch, channels)),
        ("shift", shift, (batch, channels)),
        ("add", add, (batch, channels)),
    ):
        if value is not None:
            common.floating(where, name, value)
            common.shaped(where, name, value, shape)
            common.same_device(where, name, value, x, "x")
    silu = common.flag(where, "silu", silu)
    common.sized(where, common.elements(x.shape))
    arguments = (x, groups, weight, bias, scale, shift, add, float(eps), silu)
    with choice.use(backend) if backend else nullcontext():
        if out is None:
            return _functional(*arguments)
        common.writable(where, "out", out)
        common.shaped(where, "out", out, x.shape)
        common.same_device(where, "out", out, x, "x")
        common.apart(where, "out", out, (x, weight, bias, scale, shift, add))
        if out.dtype != x.dtype or not _alike(out, x):
            raise ValueError(
                f"fastdiff.{where}: expected out with the dtype and memory format of x ({x.dtype},"
                f" strides {x.stride()}), got {out.dtype}, strides {out.stride()}."
            )
        tensors = [v for v in (x, weight, bias, scale, shift, add, out) if v is not None]
        if common.unobserved(*tensors):
            torch.autograd.graph.increment_version(out)
            _launch_out(*arguments, out)
        else:
            _into(*arguments, out)
        return out


def _alike(out: Tensor, x: Tensor) -> bool:
    """Returns whether both have dense channels, or both dense positions."""
    if out.numel() == 0 or (out.stride() == x.stride() and _strides(x) is not None):
        return True
    to, stored = _strides(out), _as_stored(x)[1]
    return to is not None and (to[1] == 1) == (stored[1] == 1) and out.stride(0) > 0
