"""Group norm, conditioning and SiLU in one pass.

It is `fastdiff.ops.group_norm_silu` where a kernel runs, and torch's operations elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backend.choice import backend_for
from ..ops.group_norm_silu import group_norm_silu
from .tree import differentiates, mix_in


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
    if scale is not None:
        y = y * (1 + _broadcast(scale, x))
    if shift is not None:
        y = y + _broadcast(shift, x)
    return F.silu(y) if silu else y


def _broadcast(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(*value.shape, *[1] * (x.ndim - 2))


class Norm:
    """A GroupNorm, followed by SiLU if `_silu`."""

    num_groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    _silu: bool

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self, x, silu=self._silu)


def faster_norm(norm: nn.GroupNorm, silu: bool = False) -> None:
    """Converts a GroupNorm of a shared tree, with the SiLU that follows it if `silu`."""
    mix_in(norm, Norm, _silu=silu)
