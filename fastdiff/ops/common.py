"""Validation shared by the ops. Errors are one sentence: where: expected, got, do (DESIGN section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rng import MODES

library = torch.library.Library("fastdiff", "DEF")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def define(name: str, schema: str, launch) -> None:
    """Registers fastdiff::<name> with one implementation for real devices; backends are chosen inside it."""
    library.define(name + schema)
    for key in ("CPU", "CUDA", "MPS", "XPU"):
        library.impl(name, launch, key)


def floating(where: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"fastdiff.{where}: expected {name} as a tensor, got {type(value).__name__}.")
    if value.dtype not in FLOATS:
        raise TypeError(
            f"fastdiff.{where}: expected {name} of dtype float64, float32, float16 or bfloat16, got "
            f"{str(value.dtype).removeprefix('torch.')}."
        )


def batched(where: str, name: str, value: Tensor) -> None:
    floating(where, name, value)
    if value.ndim < 1:
        raise ValueError(f"fastdiff.{where}: expected {name} of shape [B, …], got a scalar. Add a batch dimension.")


def shaped(where: str, name: str, value: Tensor, shape: Sequence[int]) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"fastdiff.{where}: expected {name} of shape {list(shape)}, got {list(value.shape)}.")


def same_device(where: str, name: str, value: Tensor, like: Tensor, like_name: str) -> None:
    if value.device != like.device:
        raise ValueError(
            f"fastdiff.{where}: expected {name} on {like.device} like {like_name}, got {value.device}. Move it there."
        )


def integers(where: str, name: str, value: Tensor, batch: int, like: Tensor, like_name: str) -> Tensor:
    """An int64 [B] tensor beside `like`."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"fastdiff.{where}: expected {name} as an int64 tensor [{batch}], got {got}.")
    shaped(where, name, value, (batch,))
    same_device(where, name, value, like, like_name)
    return value.contiguous()


def seed_arguments(
    where: str, seed: int | Tensor | None, batch: int, like: Tensor, like_name: str
) -> tuple[int, Tensor | None]:
    """(seed as the int64 of its bits, seeds [B] or None); None becomes 0, the callers know whether noise is needed."""
    if seed is None:
        return 0, None
    if isinstance(seed, Tensor):
        if seed.ndim == 0:
            seed = seed.expand(batch)
        return 0, integers(where, "seed", seed, batch, like, like_name)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"fastdiff.{where}: expected seed as an int or an int64 tensor, got {type(seed).__name__}.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"fastdiff.{where}: expected seed in [0, 2**64), got {seed}.")
    return seed - 2**64 if seed >= 2**63 else seed, None


def unsigned(seed: int) -> int:
    """The inverse of the int64 encoding of a seed."""
    return seed % 2**64


def counter_arguments(where: str, step: int, stream: int, mode: str) -> bool:
    """Checks the noise counter's step and stream and returns whether the mode is `fast`."""
    if not 0 <= step < 2**32:
        raise ValueError(f"fastdiff.{where}: expected step in [0, 2**32), got {step}.")
    if not 0 <= stream < 256:
        raise ValueError(f"fastdiff.{where}: expected stream in [0, 256), got {stream}.")
    if mode not in MODES:
        raise ValueError(f"fastdiff.{where}: expected mode in {list(MODES)}, got {mode!r}.")
    return mode == "fast"


def sized(where: str, per_sample: int) -> None:
    if per_sample > 2**34:
        raise ValueError(
            f"fastdiff.{where}: expected at most 2**34 elements in a sample (the noise counter's range), got {per_sample}."
        )


def elements(shape: Sequence[int]) -> int:
    """Elements in a sample of shape [B, …]."""
    n = 1
    for size in shape[1:]:
        n *= size
    return n
