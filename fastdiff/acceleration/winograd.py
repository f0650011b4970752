"""3x3 convolutions by Winograd's F(4x4, 3x3) on the CPU, in float32 (Lavin & Gray 2016, section 4).

A 4x4 square of outputs needs the 6x6 square of inputs d around it: Y = A' [(G g G') * (B' d B)] A,
summed over the input channels inside the brackets. That is 36 multiplications per channel instead
of 144, as 36 matrix products over all squares. The matrices belong to the points 0, ±a, ±b and
infinity at which polynomials are evaluated. With a = 1/sqrt 2 and b = sqrt 2 the error is about
twice that of a direct convolution; with the usual 1 and 2 it is two to four times larger.

G g G' is computed once per weight, in float64, and packed for csrc/cpu/winograd.cpp, which does the
rest. This is no public op: the packed weights belong to the caller, and no GPU needs it.
"""

from __future__ import annotations

import functools
import math
from ctypes import c_char_p, c_int64
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from ..backend import library
from ..ops.common import unobserved

A, B = math.sqrt(0.5), math.sqrt(2.0)
PANEL = 16
_VERSION = 1
_BLOCK = 128  # squares at a time: one of the 36 products fits the L2 cache, all fit the last level
_STRUCT = Struct("=qqqqqqqQqqqQqqqQQQqQqqqdQq")
_IMAGE = (
    "Tensor image, Tensor weight, int out_channels, Tensor? bias, Tensor? add, Tensor? residual,"
    " float scale"
)


def weight_matrix() -> Tensor:
    """G, float64 [6, 3].

    Row p is [1, p, p²] / prod over the other points q of (p - q); infinity's row is [0, 0, 1].
    """
    points = (0.0, A, -A, B, -B)
    rows = [[p**k / math.prod(p - q for q in points if q != p) for k in range(3)] for p in points]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def packed_bytes(out_channels: int, channels: int) -> int:
    """The size of a packed weight: four times the weight, for channels that fill their panels."""
    return 36 * 4 * channels * PANEL * -(-out_channels // PANEL)


def pack(weight: Tensor) -> Tensor:
    """G g G' of a weight [K, C, 3, 3], float32 [36, ceil(K/16), C, 16]."""
    out_channels, channels = weight.shape[:2]
    g = weight_matrix()
    result = torch.zeros(36, -(-out_channels // PANEL) * PANEL, channels)
    for begin in range(0, out_channels, 256):  # float64 of a few channels at a time
        part = g @ weight[begin : begin + 256].detach().double() @ g.T
        result[:, begin : begin + len(part)] = (
            part.permute(2, 3, 0, 1).reshape(36, -1, channels).float()
        )
    return result.view(36, -1, PANEL, channels).transpose(2, 3).contiguous()


@functools.cache
def _library() -> tuple[library.Library, Any, Any] | None:
    """The library and its functions.

    None where no level has vectors wide enough to be faster than oneDNN.
    """
    loaded = library.load("cpu")
    if (
        loaded.handle is None
        or not hasattr(loaded.handle, "fd_winograd")
        or library.levels()[-1] == "baseline"
    ):
        return None
    loaded.handle.fd_winograd_version.restype = c_int64
    if loaded.handle.fd_winograd_version() != _VERSION:
        return None
    run, workspace = loaded.handle.fd_winograd, loaded.handle.fd_winograd_workspace
    run.argtypes, workspace.argtypes, workspace.restype = [c_char_p], [c_int64] * 3, c_int64
    return loaded, run, workspace


def available() -> bool:
    """Whether 3x3 convolutions can be computed in this way on this machine."""
    return _library() is not None and library.forced_level() != 0


def serves(out_channels: int, channels: int, image: Tensor) -> bool:
    """Whether this convolution is faster in this way.

    It depends on a sample's shape alone, never on the batch. There are 36 products per square and
    channel here and 9 per output in a direct convolution; another quarter pays for the transforms.
    Measured at 128 to 512 channels from 4x4 up, at batch 1 and 8, the gain is 1.4 to 3.
    """
    if (
        image.dtype != torch.float32
        or image.device.type != "cpu"
        or channels < PANEL
        or not available()
    ):
        return False
    height, width = image.shape[2:]
    squares = -(-height // 4) * -(-width // 4)
    return (
        36 * squares * (-(-out_channels // PANEL) * PANEL) * 1.25
        < 9 * height * width * out_channels
    )


def _launch(
    image: Tensor,
    weight: Tensor,
    out_channels: int,
    bias: Tensor | None,
    add: Tensor | None,
    residual: Tensor | None,
    scale: float,
    level: int | None = None,
) -> Tensor:
    found = _library()
    assert found is not None
    loaded, run, workspace = found
    batch, channels, height, width = image.shape
    out = torch.empty((batch, out_channels, height, width), memory_format=torch.channels_last)
    tiles = batch * -(-height // 4) * -(-width // 4)
    block = -(-tiles // -(-tiles // _BLOCK)) if tiles else 1  # even shares
    scratch = torch.empty(workspace(channels, out_channels, block))
    level = library.forced_level() if level is None else level
    status = run(
        _STRUCT.pack(
            level,
            torch.get_num_threads(),
            batch,
            height,
            width,
            channels,
            out_channels,
            *_view(image),
            *_view(out),
            weight.data_ptr(),
            _pointer(bias),
            _pointer(add),
            0 if add is None else add.stride(0),
            *_view(residual),
            scale,
            scratch.data_ptr(),
            block,
        )
    )
    if status:
        library.raise_status(loaded, "accelerate", status)
    return out


def differentiates_weights() -> bool:
    """Whether the library has the gradient by the weight; one built before lacks it."""
    found = _library()
    return found is not None and hasattr(found[0].handle, "fd_winograd_weight")


def weight_gradient(image: Tensor, grad: Tensor, level: int | None = None) -> Tensor:
    """The gradient by the packed weight, float32 [36, ceil(K/16), C, 16].

    (A g A') * (B' d B), summed over all squares. An element sums the squares in their order, in
    blocks, so the bits do not depend on the number of threads.

    Args:
        image: [B, C, H, W] float32, the convolution's input.
        grad: [B, K, H, W] float32, the gradient by its result.
    """
    found = _library()
    assert found is not None
    loaded, _, workspace = found
    image, grad = _channels_last(image), _channels_last(grad)
    batch, channels, height, width = image.shape
    outputs = grad.shape[1]
    out = torch.zeros(36, -(-outputs // PANEL), channels, PANEL)
    tiles = batch * -(-height // 4) * -(-width // 4)
    block = -(-tiles // -(-tiles // _BLOCK)) if tiles else 1
    scratch = torch.empty(workspace(channels, outputs, block))
    run = loaded.handle.fd_winograd_weight
    run.argtypes = [c_char_p]
    status = run(
        _STRUCT.pack(
            library.forced_level() if level is None else level,
            torch.get_num_threads(),
            batch,
            height,
            width,
            channels,
            outputs,
            *_view(image),
            out.data_ptr(),
            *(0, 0, 0),
            *(0, 0, 0, 0),
            *_view(grad),
            1.0,
            scratch.data_ptr(),
            block,
        )
    )
    if status:
        library.raise_status(loaded, "accelerate", status)
    return out


def _view(image: Tensor | None) -> tuple[int, int, int, int]:
    return (
        (0, 0, 0, 0)
        if image is None
        else (image.data_ptr(), image.stride(0), image.stride(2), image.stride(3))
    )


def _pointer(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


_registry = torch.library.Library("fastdiff_acceleration", "DEF")
_registry.define(f"conv3x3({_IMAGE}) -> Tensor")
_registry.impl("conv3x3", _launch, "CPU")


@torch.library.register_fake("fastdiff_acceleration::conv3x3")
def _fake(image, weight, out_channels, bias, add, residual, scale):
    batch, _, height, width = image.shape
    return image.new_empty((batch, out_channels, height, width)).contiguous(
        memory_format=torch.channels_last
    )


_dispatched = torch.ops.fastdiff_acceleration.conv3x3.default


def conv3x3(
    image: Tensor,
    packed: Tensor,
    out_channels: int,
    bias: Tensor | None = None,
    *,
    add: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """(conv(image, weight) + bias + add + residual) * scale with stride 1 and padding 1.

    It has no gradients.

    Args:
        image: [B, C, H, W] float32; copied unless its channels are dense in memory.
        packed: the weight, packed by `pack`.
        bias: [K].
        add: [B, K].
        residual: [B, K, H, W].

    Returns:
        [B, K, H, W], stored channels last. A sample's bits do not depend on its batch or on the
        number of threads.
    """
    image = _channels_last(image)
    residual = None if residual is None else _channels_last(residual)
    add = add if add is None or add.stride(1) == 1 else add.contiguous()
    arguments = (image, packed, out_channels, bias, add, residual, scale)
    return _launch(*arguments) if unobserved(image) else _dispatched(*arguments)


def _channels_last(image: Tensor) -> Tensor:
    return image if image.stride(1) == 1 else image.contiguous(memory_format=torch.channels_last)
