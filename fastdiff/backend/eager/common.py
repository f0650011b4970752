"""Pieces the eager ops share: the compute type, per-sample broadcasting and checked table
look-ups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(state: Tensor) -> torch.dtype:
    """float64 for a float64 state, else float32."""
    return torch.float64 if state.dtype == torch.float64 else torch.float32


def iota(batch: int, device: torch.device) -> Tensor:
    """The default sample ids 0 … B-1."""
    return torch.arange(batch, device=device)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, …], to broadcast against `like`."""
    return values.view(values.shape[0], *(1,) * (like.ndim - 1))


def checked_index(index: Tensor, size: int, message: str | None) -> tuple[Tensor, Tensor | None]:
    """(index held in range, validity [B] or None): the CPU raises IndexError, other devices mark
    bad samples.

    A device is never read here: its bad samples become NaN, as in the GPU kernels. Without a
        message (in a backward
    pass, after the forward has checked) nothing is read anywhere.
    """
    valid = (index >= 0) & (index < size)
    if message is not None and index.device.type == "cpu":
        if not bool(valid.all()):
            at = int((~valid).to(torch.int8).argmax())
            raise IndexError(message.format(size=size, value=int(index[at]), at=at))
        return index, None
    return index.clamp(0, size - 1), valid


def store(out: Tensor, value: Tensor) -> None:
    """out.copy_(value), rounded once: torch takes float64 to 16 bits by way of float32, which
    rounds ties a second time.
    """
    if value.dtype == torch.float64 and out.element_size() == 2:
        single = value.to(torch.float32)
        back = single.to(torch.float64)
        bits = single.view(torch.int32)
        # "round to odd": the last bit remembers that digits were lost, and the second rounding sees
        # it
        odd = (torch.where(back.abs() > value.abs(), bits - 1, bits) | 1).view(torch.float32)
        value = torch.where((back == value) | value.isnan(), single, odd)
    out.copy_(value)
