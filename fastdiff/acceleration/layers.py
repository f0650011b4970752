"""Convolutions for inference, with activations stored channels last.

3x3 convolutions of stride 1 use Winograd's algorithm (`winograd`) where it is faster, 1x1
convolutions are matrix products over pixels on the CPU, others are torch's. Where autograd records,
all are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import winograd
from .tree import Prepared, differentiates, mix_in


class Convolution:
    """A Conv2d with zero padding: out = (conv(x) + add + residual) * scale."""

    weight: Tensor
    bias: Tensor | None
    in_channels: int
    out_channels: int
    _winograd: Prepared | None  # None: not by Winograd's algorithm
    _channels_last: Prepared  # the weight in that format, which cuDNN would make at every call
    _pixelwise: bool

    def forward(
        self,
        x: Tensor,
        *,
        add: Tensor | None = None,
        residual: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """See the class.

        Args:
            x: [B, C, H, W].
            add: [B, K], for K output channels.
            residual: [B, K, H', W'], of the shape of the result.
        """
        weight, bias = self.weight, self.bias
        direct = x.ndim == 4 and x.shape[1] == self.in_channels and x.device == weight.device
        direct = direct and all(
            v is None or v.dtype == x.dtype for v in (weight, bias, add, residual)
        )
        if (
            direct
            and not torch.is_autocast_enabled(x.device.type)
            and not differentiates(x, weight, bias, add, residual)
        ):
            prepared = None if torch.compiler.is_compiling() else self._winograd
            if prepared is not None and winograd.serves(self.out_channels, x.shape[1], x):
                packed = prepared.get((weight,), winograd.pack)
                return winograd.conv3x3(
                    x, packed, self.out_channels, bias, add=add, residual=residual, scale=scale
                )
            if self._pixelwise and x.device.type == "cpu":
                return finish(self._product(x), add, residual, scale)
            if x.device.type == "cuda":
                kept = self._channels_last.get((weight,), _channels_last)
                out = self._conv_forward(x, kept, bias)  # type: ignore[attr-defined]  # nn.Conv2d's
                return finish(out, add, residual, scale)
        return finish(super().forward(x), add, residual, scale)  # type: ignore[misc]  # nn.Conv2d's

    def _product(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        out = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return out.permute(0, 3, 1, 2)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def finish(out: Tensor, add: Tensor | None, residual: Tensor | None, scale: float) -> Tensor:
    """(out + add + residual) * scale, for a convolution that does not add them itself."""
    if add is not None:
        out = out + add[:, :, None, None]
    if residual is not None:
        out = out + residual
    return out if scale == 1.0 else out * scale


def faster_convolution(conv: nn.Conv2d, free_bytes: int) -> int:
    """Converts a convolution of a shared tree where that is faster.

    Returns the bytes that its transformed weight will take, at most free_bytes.
    """
    if (
        conv.groups != 1
        or conv.dilation != (1, 1)
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
    ):
        return 0
    pixelwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
    square = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    size = winograd.packed_bytes(conv.out_channels, conv.in_channels)
    # few channels: torch's convolution is as fast, and the packed weight would be mostly zeros
    by_winograd = (
        square and min(conv.in_channels, conv.out_channels) >= winograd.PANEL and size <= free_bytes
    )
    mix_in(
        conv,
        Convolution,
        _winograd=Prepared() if by_winograd else None,
        _channels_last=Prepared(by_version=True),
        _pixelwise=pixelwise,
    )
    return size if by_winograd else 0
