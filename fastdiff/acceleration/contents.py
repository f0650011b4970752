"""What weights' memory holds, as digests that change with it.

`.data`, NumPy's views and other processes write weights without a trace in torch's version
counters, so what is made from weights on the CPU is compared with their contents at every call. A
digest (csrc/include/fastdiff/contents.h) reads a weight once, at the speed of memory, and depends
on the place of every word: a change of signs or of places changes it too. Without the C++ library
copies are compared.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import addressof, byref, c_char_p, c_int64, c_void_p, create_string_buffer
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import library

DIGEST = 256  # bytes
_ARGUMENTS = Struct("=qqqQQ")  # fd_contents_args
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Contents:
    """The contents of weights on the CPU at one moment.

    Args:
        weights: dense or with gaps, of any dtype.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self._native = _functions()
        if self._native is None:
            self._copies = [_bits(weight).clone() for weight in weights]
            return
        memory = _Memory.of(weights)
        # what has gaps is copied at every comparison
        self._memory = None if memory.copied else memory
        self._digests = create_string_buffer(DIGEST * len(weights))
        status = self._native[1](memory.arguments(), self._digests)
        if status:
            library.raise_status(self._native[0], "accelerate", status)

    @property
    def digests(self) -> list[bytes]:
        """The digest of each weight; with the C++ library only."""
        raw = self._digests.raw
        return [raw[i : i + DIGEST] for i in range(0, len(raw), DIGEST)]

    def unchanged(self, weights: Sequence[Tensor]) -> bool:
        """Whether weights at the same addresses, of the same shapes, strides and dtypes, still have
        these contents.
        """
        if self._native is None:
            return all(map(torch.equal, map(_bits, weights), self._copies))
        memory, changed = self._memory or _Memory.of(weights), c_int64()
        status = self._native[2](memory.arguments(), self._digests, byref(changed))
        if status:
            library.raise_status(self._native[0], "accelerate", status)
        return changed.value == 0


class _Memory(NamedTuple):
    """The addresses and sizes of weights, as fd_contents takes them.

    Attributes:
        held: what must live as long: C arrays, and copies of weights with gaps.
        place: the number of weights and the addresses of the arrays.
        copied: whether there are copies.
    """

    held: tuple[Any, ...]
    place: tuple[int, int, int]
    copied: bool

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> _Memory:
        dense, count = [_dense(weight) for weight in weights], len(weights)
        data = (c_void_p * count)(*(value.data_ptr() for value in dense))
        sizes = (c_int64 * count)(*(value.numel() * value.element_size() for value in dense))
        copied = any(a.data_ptr() != b.data_ptr() for a, b in zip(dense, weights, strict=True))
        held = (data, sizes, dense if copied else None)
        return cls(held, (count, addressof(data), addressof(sizes)), copied)

    def arguments(self) -> bytes:
        """fd_contents_args."""
        return _ARGUMENTS.pack(library.forced_level(), torch.get_num_threads(), *self.place)


@functools.cache
def _functions() -> tuple[library.Library, Any, Any] | None:
    """The library, fd_contents and fd_contents_changed; None without it, or with an older one."""
    loaded = library.load("cpu")
    if loaded.handle is None or not hasattr(loaded.handle, "fd_contents_changed"):
        return None
    compute, compare = loaded.handle.fd_contents, loaded.handle.fd_contents_changed
    compute.argtypes = [c_char_p, c_void_p]
    compare.argtypes = [c_char_p, c_void_p, c_void_p]
    return loaded, compute, compare


def _dense(weight: Tensor) -> Tensor:
    """A tensor over the same memory in its order, or a copy of a weight with gaps."""
    if weight.is_contiguous():
        return weight
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    return weight.detach().permute(order).contiguous()


def _bits(weight: Tensor) -> Tensor:
    dense = _dense(weight.detach())
    return dense.view(_INTEGERS[dense.element_size()])
