"""Launches group_norm_silu: moments of chunks, statistics of groups, then the result."""

from __future__ import annotations

import struct
from typing import Any

from torch import Tensor, float64

from .common import _CHUNKS_Y, Call, int32, options, run

_POSITIONS = 64  # of a chunk
# at most, of a program, where channels are dense: 16 bytes per thread, whole cache lines
_CHANNELS = 64
_MOMENTS = 128  # at most, of a program of the moments where channels are dense: one per thread
_TILE = 2048  # elements of a program of the last kernel
_WARPS = 8
# What fills a GPU: an H200's multiprocessors, and the warps that each can hold.
_MULTIPROCESSORS, _MOST_WARPS = 132, 64
_MOST_TILES = 8


def group_norm_silu(
    out: Tensor,
    workspace: Tensor,
    statistics: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    eps: float,
    silu: bool,
) -> None:
    """Launches the three kernels; `out` and `x` are [B, C, n] views.

    The workspace is [2, B, chunks of 64 positions, C], the statistics are [2, B, groups].
    """
    run(group_norm_moments_call(workspace, x, add), x)
    run(group_norm_statistics_call(statistics, workspace, x, groups, eps), x)
    run(group_norm_silu_call(out, statistics, x, groups, weight, bias, scale, shift, add, silu), x)


def group_norm_moments_call(workspace: Tensor, x: Tensor, add: Tensor | None) -> Call:
    batch, channels, positions = x.shape
    last = _last(x)
    across = min(_MOMENTS if last else 16, _power(channels))
    arguments: dict[str, Any] = (
        {"workspace": workspace, "x": x} | _strides("x", x) | _rows(add=add) | _sizes(x)
    )
    arguments |= {"S": _POSITIONS, "E": across, "LAST": last, "FAST": False}
    # Of positions side by side a thread has 8 in each 16 of a channel. That is too many in float64,
    # and where rows begin at any address, so that positions are loaded one by one.
    each = 4 if workspace.dtype == float64 else 2
    threads = across if last else across * (16 if positions % 16 else each)
    warps = max(1, threads // 32)
    grid = _grid(batch * -(-channels // across), -(-positions // _POSITIONS))
    return Call("group_norm_moments", "group_norm_silu", grid, arguments, options(warps=warps))


def group_norm_statistics_call(
    statistics: Tensor, workspace: Tensor, x: Tensor, groups: int, eps: float
) -> Call:
    low, high = struct.unpack("<Ii", struct.pack("<d", eps))  # Triton passes numbers as float32
    arguments: dict[str, Any] = {"statistics": statistics, "workspace": workspace}
    arguments |= {"eps_lo": int32(low), "eps_hi": high}
    arguments |= _sizes(x) | {"groups": groups, "E": 1, "FAST": False}
    return Call(
        "group_norm_statistics",
        "group_norm_silu",
        (len(x) * groups, 1, 1),
        arguments,
        options(warps=1),
    )


def group_norm_silu_call(
    out: Tensor,
    statistics: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    silu: bool,
) -> Call:
    batch, channels, positions = x.shape
    last = _last(x)
    if last:
        across = min(_CHANNELS, _power(channels))
        along = max(1, min(_TILE // across, _power(positions)))
    else:
        along = min(_TILE, _power(positions))
        across = max(1, min(_TILE // along, _power(channels)))
    warps = max(1, min(_WARPS, along * across // 256))
    samples, tiles = batch * -(-channels // across), -(-positions // along)
    each = _tiles_each(samples, tiles, warps)
    arguments: dict[str, Any] = {
        "out": out,
        "x": x,
        "statistics": statistics,
        "weight": weight,
        "bias": bias,
    }
    arguments |= (
        _rows(scale=scale, shift=shift, add=add)
        | _strides("x", x)
        | _strides("out", out)
        | _sizes(x)
    )
    arguments |= {
        "groups": groups,
        "each": each,
        "S": along,
        "E": across,
        "LAST": last,
        "SILU": silu,
        "FAST": False,
    }
    grid = (samples, -(-tiles // each), 1)
    return Call("group_norm_silu", "group_norm_silu", grid, arguments, options(warps=warps))


def _tiles_each(samples: int, tiles: int, warps: int) -> int:
    """Returns how many tiles a program computes, one after the other.

    It sets up its channels once for all of them, but enough programs are left to fill the GPU.
    """
    each = min(_MOST_TILES, max(1, samples * tiles // (_MULTIPROCESSORS * _MOST_WARPS // warps)))
    return max(each, -(-tiles // _CHUNKS_Y))


def _last(x: Tensor) -> bool:
    return x.stride(1) == 1


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _grid(samples: int, chunks: int) -> tuple[int, int, int]:
    return samples, min(chunks, _CHUNKS_Y), -(-chunks // _CHUNKS_Y)


def _sizes(x: Tensor) -> dict[str, Any]:
    return dict(zip(("batch", "channels", "positions"), x.shape, strict=True))


def _strides(name: str, x: Tensor) -> dict[str, Any]:
    return dict(
        zip((f"{name}_sample", f"{name}_channel", f"{name}_position"), x.stride(), strict=True)
    )


def _rows(**views: Tensor | None) -> dict[str, Any]:
    """Returns [B, C] views of element stride 1, with the stride of their rows."""
    dense: dict[str, Any] = {
        name: v if v is None or v.stride(1) == 1 or v.shape[1] == 1 else v.contiguous()
        for name, v in views.items()
    }
    return dense | {f"{name}_stride": 0 if v is None else v.stride(0) for name, v in dense.items()}
