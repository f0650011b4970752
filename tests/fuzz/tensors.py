"""Draws tensors of any layout, dtype and value, and keeps watch over their memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WILD = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-40, 0.0, -0.0, 65504.0, 3e38)
SAME_NUMBERS = ("permuted", "strided", "negative", "offset", "parameter")
LAYOUTS = (*SAME_NUMBERS, "expanded", "overlapping")
GUARD = 96  # bytes on each side of a result
SENTINEL = 0x5A
_POOL = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
_WILD = torch.tensor(WILD, dtype=torch.float64)
_BYTES = torch.full((4096,), SENTINEL, dtype=torch.uint8)


def count(shape: Sequence[int]) -> int:
    """Returns the number of elements of a shape."""
    n = 1
    for size in shape:
        n *= size
    return n


def draw_shape(r: random.Random, least: int = 1) -> tuple[int, ...]:
    """Returns a shape [B, …]: mostly a few hundred elements, of any rank up to 5, also empty ones
    and samples of several chunks of a sum (1,024 elements each).
    """
    rank = max(least, r.choice((1, 2, 2, 2, 3, 3, 4, 4, 5)))
    batch = r.choice((1, 1, 2, 2, 3, 4, 5, 7, 9, 17))
    budget = r.choice((4, 30, 100, 300)) if r.random() < 0.97 else r.choice((1500, 2600))
    sizes: list[int] = []
    for _ in range(rank - 1):
        most = max(1, budget // max(count(sizes), 1))
        sizes.append(r.choice((1, 2, 3, min(4, most), r.randint(1, most))))
    if sizes and r.random() < 0.7:
        sizes[-1] = max(sizes[-1], min(budget // max(count(sizes[:-1]), 1), r.randint(1, budget)))
    r.shuffle(sizes)
    shape = [batch, *sizes]
    while count(shape) > 8000:
        shape[shape.index(max(shape))] //= 2
    if r.random() < 0.06:
        shape[r.randrange(rank)] = 0
    return tuple(shape)


def draw_dtype(r: random.Random) -> torch.dtype:
    """Returns a floating dtype, float32 most often."""
    return r.choices(FLOATS, (5, 3, 2, 2))[0]


def normals(r: random.Random, shape: Sequence[int], dtype: torch.dtype, scale: float) -> Tensor:
    """Returns normals times scale, from a fixed pool."""
    n = count(shape)
    pool = _POOL if n < len(_POOL) else _POOL.repeat(n // len(_POOL) + 1)
    at = r.randrange(len(pool) - n)
    return (pool[at : at + n] * scale).to(dtype).view(tuple(shape))


def made_wild(r: random.Random, value: Tensor) -> Tensor:
    """Returns the tensor with a few elements that are not finite, huge, tiny or signed zeros."""
    if value.numel():
        value = value.clone()
        flat, wild = value.view(-1), _WILD.to(value.dtype)
        for _ in range(r.randint(1, 3)):
            flat[r.randrange(len(flat))] = wild[r.randrange(len(wild))]
    return value


def laid_out(r: random.Random, value: Tensor, kind: str) -> Tensor:
    """Returns a tensor of the same shape and dtype in another kind of memory.

    The numbers are the same, except for the kinds that repeat some of them.
    """
    if kind == "permuted" and value.ndim > 1:
        order = list(range(value.ndim))
        r.shuffle(order)
        back = sorted(range(value.ndim), key=order.__getitem__)
        return value.permute(order).contiguous().permute(back)
    if kind == "strided":
        wide = value.new_zeros((*value.shape, 2))
        wide[..., 1] = value
        return wide[..., 1]
    if kind == "expanded" and value.numel():
        dim = r.randrange(value.ndim)
        return value.narrow(dim, 0, 1).expand(value.shape)
    if kind == "negative" and value.is_floating_point():
        return torch._neg_view(-value)
    if kind == "offset":
        shift = r.choice((1, 3))
        flat = value.new_zeros(value.numel() + shift + 2)
        flat[shift : shift + value.numel()] = value.reshape(-1)
        return flat[shift : shift + value.numel()].view(value.shape)
    if kind == "overlapping" and value.ndim > 1 and value.numel():
        # row i + 1 begins one element after row i: most of their memory is the same
        rows, rest = value.shape[0], count(value.shape[1:])
        flat = value.reshape(-1)[: rows + rest - 1].clone()
        if len(flat) == rows + rest - 1:
            inner = [count(value.shape[i + 1 :]) for i in range(1, value.ndim)]
            return flat.as_strided(value.shape, (1, *inner))
    if kind == "parameter" and value.is_floating_point():
        return torch.nn.Parameter(value, requires_grad=False)
    return value


def has_memory(value: Tensor) -> bool:
    """Returns whether a tensor has a storage to look at."""
    return value.layout is torch.strided and not value.is_meta and not value.is_nested


class Watch:
    """The bytes of tensors' storages, to see whether a call changed them."""

    def __init__(self, values: Iterable[Any], apart_from: Iterable[Tensor] = ()):
        written = {v.untyped_storage().data_ptr() for v in apart_from}
        self.kept = []
        for value in values:
            if isinstance(value, Tensor) and has_memory(value):
                memory = _memory(value)
                if memory.numel() and memory.data_ptr() not in written:
                    self.kept.append((memory, memory.clone()))

    def changed(self) -> bool:
        """Returns whether any byte differs."""
        return not all(torch.equal(now, before) for now, before in self.kept)


def _memory(value: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(value.detach().untyped_storage())  # type: ignore


class Guarded:
    """Results' buffers, each between guards of known bytes."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a contiguous buffer of this shape, filled with the guards' bytes."""
        size = count(shape) * dtype.itemsize
        total = size + 2 * GUARD
        memory = (
            _BYTES[:total].clone()
            if total <= len(_BYTES)
            else torch.full((total,), SENTINEL, dtype=torch.uint8)
        )
        self.buffers.append(memory)
        return memory[GUARD : GUARD + size].view(dtype).view(tuple(shape))

    def broken(self) -> bool:
        """Returns whether anything was written next to a buffer."""
        return any(
            not torch.equal(side, _BYTES[:GUARD])
            for memory in self.buffers
            for side in (memory[:GUARD], memory[-GUARD:])
        )
