"""Functions that the eager ops share: the compute type, broadcasting and table look-ups."""

from __future__ import annotations

import torch
from torch import Tensor

from ...rng import IDS


def compute_dtype(state: Tensor) -> torch.dtype:
    """Returns the compute type: float64 for a float64 state, else float32."""
    return torch.float64 if state.dtype == torch.float64 else torch.float32


def iota(batch: int, device: torch.device) -> Tensor:
    """Returns the default sample ids 0 … B-1."""
    return torch.arange(batch, device=device)


def known_ids(sample_ids: Tensor, where: str | None) -> tuple[Tensor, Tensor | None]:
    """Returns sample ids that the noise counter can hold, and their validity as `checked_index`.

    where: the op whose forward pass draws the noise; None in a backward pass.
    """
    message = None
    if where is not None:
        message = (
            f"fastdiff.{where}: expected sample_ids in [0, 2**56), got {{value}} at index {{at}}."
        )
    return checked_index(sample_ids, IDS, message)


def by_sample(value: Tensor) -> Tensor:
    """Returns a value [B, …] as [B, n], also where it has one dimension or no elements."""
    n = 1
    for size in value.shape[1:]:
        n *= size
    return value.reshape(value.shape[0], n)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Returns values [B] as [B, 1, …], to broadcast against `like`."""
    return values.view(values.shape[0], *(1,) * (like.ndim - 1))


def checked_index(index: Tensor, size: int, message: str | None) -> tuple[Tensor, Tensor | None]:
    """Returns (index clamped into range, validity [B] or None).

    A bad index on the CPU raises IndexError. Other devices are never read: the validity marks their
    bad samples, which become NaN as in the GPU kernels. Without a message (in a backward pass,
    after the checks of the forward pass) the CPU is not read either.
    """
    valid = (index >= 0) & (index < size)
    if message is not None and index.device.type == "cpu":
        if not bool(valid.all()):
            at = int((~valid).to(torch.int8).argmax())
            raise IndexError(message.format(size=size, value=int(index[at]), at=at))
        return index, None
    return index.clamp(0, size - 1), valid


def store(out: Tensor, value: Tensor) -> None:
    """Stores out.copy_(value) with one rounding.

    torch converts float64 to 16 bits through float32, which rounds twice.
    """
    if value.dtype == torch.float64 and out.element_size() == 2:
        single = value.to(torch.float32)
        back = single.to(torch.float64)
        bits = single.view(torch.int32)
        # "round to odd": the last bit records lost digits, so that the second rounding is right
        odd = (torch.where(back.abs() > value.abs(), bits - 1, bits) | 1).view(torch.float32)
        value = torch.where((back == value) | value.isnan(), single, odd)
    out.copy_(value)
