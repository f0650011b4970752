"""What a weight's memory holds, as a digest that changes with it.

`.data`, NumPy's views and other processes write weights without a trace in torch's version
counters, so what is made from a weight on the CPU is compared with the weight's contents at every
call. The digest (csrc/include/fastdiff/contents.h) reads them once, at the speed of memory, and
depends on the place of every word: a change of signs or of places changes it too. Without the C++
library a copy is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import c_int64, c_void_p, create_string_buffer
from typing import Any

import torch
from torch import Tensor

from ..backend import library

WORDS = 32  # of a digest
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digests(weights: Sequence[Tensor], known: list[Any] | None = None) -> list[Any]:
    """The digests of weights on the CPU; the list `known` itself where they are equal to its.

    known: of earlier weights of the same shapes, dtypes and strides.
    """
    native = _function()
    if native is not None:
        found: list[Any] = [_digest(weight, native) for weight in weights]
        return known if found == known else found
    bits = [_bits(weight) for weight in weights]
    if known is not None and all(map(torch.equal, bits, known)):
        return known
    return [value.clone() for value in bits]


def digest(weight: Tensor, *, threads: int | None = None) -> bytes:
    """The digest of a weight on the CPU, by the C++ library. No value depends on the threads."""
    native = _function()
    assert native is not None
    return _digest(weight, native, threads)


def _digest(
    weight: Tensor, native: tuple[library.Library, Any], threads: int | None = None
) -> bytes:
    memory, out = _dense(weight), create_string_buffer(8 * WORDS)
    status = native[1](
        memory.data_ptr(),
        memory.numel() * memory.element_size(),
        out,
        library.forced_level(),
        torch.get_num_threads() if threads is None else threads,
    )
    if status:
        library.raise_status(native[0], "accelerate", status)
    return out.raw


@functools.cache
def _function() -> tuple[library.Library, Any] | None:
    """The library and its function; None where there is no library, or an older one."""
    loaded = library.load("cpu")
    if loaded.handle is None or not hasattr(loaded.handle, "fd_contents"):
        return None
    function = loaded.handle.fd_contents
    function.argtypes = [c_void_p, c_int64, c_void_p, c_int64, c_int64]
    return loaded, function


def _dense(weight: Tensor) -> Tensor:
    """A tensor over the same memory in its order, or a copy of a weight with gaps."""
    if weight.is_contiguous():
        return weight
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    return weight.detach().permute(order).contiguous()


def _bits(weight: Tensor) -> Tensor:
    dense = _dense(weight.detach())
    return dense.view(_INTEGERS[dense.element_size()])
