"""Group norm, conditioning and SiLU in one pass.

It is `fastdiff.ops.group_norm_silu` where a kernel runs, and torch's operations elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backend.choice import backend_for
from ..ops.group_norm_silu import group_norm_silu
from .tree import derived, differentiates, mix_in, plain, untouched


def normalize(
    norm: nn.GroupNorm | Norm,
    x: Tensor,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """silu(norm(x + add) (1 + scale) + shift) for x [B, C, …] and conditioning [B, C]."""
    if not _formula(norm):
        # what was put on it sees its input and gives its output
        module: Any = norm
        y = module(x if add is None else x + _broadcast(add, x))
        return _condition(y, scale, shift, silu)
    weight, bias = norm.weight, norm.bias
    fused = torch.compiler.is_compiling() or backend_for("group_norm_silu", x.device) != "torch"
    if fused and not differentiates(x, weight, bias, add, scale, shift):
        return group_norm_silu(
            x,
            norm.num_groups,
            weight,
            bias,
            eps=norm.eps,
            add=add,
            scale=scale,
            shift=shift,
            silu=silu,
        )
    y = F.group_norm(
        x if add is None else x + _broadcast(add, x), norm.num_groups, weight, bias, norm.eps
    )
    return _condition(y, scale, shift, silu)


def _formula(norm: Any) -> bool:
    """Whether a module is a GroupNorm, converted or not, with nothing put on it."""
    kind: Any = norm.__class__
    return kind in (nn.GroupNorm, _CONVERTED) and untouched(norm)


def _condition(y: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    if scale is not None:
        y = y * (1 + _broadcast(scale, y))
    if shift is not None:
        y = y + _broadcast(shift, y)
    return F.silu(y) if silu else y


def _broadcast(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(*value.shape, *[1] * (x.ndim - 2))


class Norm:
    """A GroupNorm, and the SiLU that follows it where that is a `FollowingSiLU`."""

    num_groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    _follows: tuple[nn.Module, str, str] | None  # a module, and the names of both in it

    def forward(self, x: Tensor) -> Tensor:
        if not _formula(self):
            return super().forward(x)  # type: ignore[misc]
        return normalize(self, x, silu=self.includes_silu())

    def includes_silu(self) -> bool:
        """Whether the result is that of the SiLU which follows."""
        if self._follows is None or not _formula(self):
            return False
        parent, norm, silu = self._follows
        found = parent._modules
        return found.get(norm) is self and plain(found.get(silu), FollowingSiLU)


class FollowingSiLU(nn.SiLU):
    """The SiLU after a converted norm, which computes it unless something was put on either."""

    _norm: Any

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.__dict__["_norm"] = (norm,)  # not a module of this one

    def forward(self, x: Tensor) -> Tensor:
        return x if self._norm[0].includes_silu() else super().forward(x)


_CONVERTED = derived(Norm, nn.GroupNorm)


def faster_norm(norm: nn.GroupNorm) -> None:
    """Converts a GroupNorm of a shared tree."""
    mix_in(norm, Norm, _follows=None)


def faster_norm_and_silu(parent: nn.Module, norm: str, silu: str) -> None:
    """Converts a GroupNorm and the SiLU that follows it, by their names in a module."""
    first: Any = parent._modules[norm]
    mix_in(first, Norm, _follows=(parent, norm, silu))
    parent._modules[silu] = FollowingSiLU(first)
