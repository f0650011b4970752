"""Networks whose output at an element depends on the elements before it only.

Vectors are in the order of their elements. Images are in the order of reading, row by row; the
channels of a pixel come together, and their outputs read the pixels before it (mixture.py adds the
dependence between channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Above(nn.Module):
    """A convolution that reads the row of a pixel and the one above it, to both sides.

    With strict=True it reads the two rows above the pixel.
    """

    def __init__(self, inputs: int, outputs: int, *, strict: bool = False):
        super().__init__()
        self.strict, self.conv = strict, nn.Conv2d(inputs, outputs, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.strict:
            return self.conv(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]
        return self.conv(F.pad(x, (1, 1, 1, 0)))


class _Before(nn.Module):
    """A convolution that reads the row of a pixel and the one above it, no column to its right.

    With strict=True it reads the two pixels on the left of the pixel, in its row.
    """

    def __init__(self, inputs: int, outputs: int, *, strict: bool = False):
        super().__init__()
        self.strict = strict
        self.conv = nn.Conv2d(inputs, outputs, (1, 2) if strict else (2, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.strict:
            return self.conv(F.pad(x, (2, 0, 0, 0)))[:, :, :, :-1]
        return self.conv(F.pad(x, (1, 0, 1, 0)))


class _Block(nn.Module):
    """above += f(above); before += g(before, above), with convolutions in f and g."""

    def __init__(self, width: int):
        super().__init__()
        self.above_1, self.above_2 = _Above(width, width), _Above(width, width)
        self.before_1, self.before_2 = _Before(width, width), _Before(width, width)
        self.link = nn.Conv2d(width, width, 1)
        for last in (self.above_2, self.before_2):
            nn.init.zeros_(last.conv.weight)

    def forward(self, above: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        above = above + self.above_2(F.silu(self.above_1(F.silu(above))))
        hidden = self.before_1(F.silu(before)) + self.link(F.silu(above))
        return above, before + self.before_2(F.silu(hidden))


class CausalConv(nn.Module):
    """Images x [B, C, H, W] -> [B, outputs, H, W] of the pixels before each pixel.

    One stack of features reads the rows above a pixel, the other one also the pixels on its left;
    so no pixel before it is out of sight (van den Oord et al. 2016, section 2.2). They need no
    masks: shifts of the first layer keep out the pixel itself (Salimans et al. 2017).

    Args:
        channels: C.
        outputs: numbers for each pixel.
        width: features of a pixel in each stack.
        depth: residual blocks; each adds two rows and columns to what an output reads.
    """

    def __init__(self, channels: int, outputs: int, width: int, depth: int):
        super().__init__()
        self.above = _Above(channels + 1, width, strict=True)
        self.before = _Before(channels + 1, width, strict=True)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        # a channel of ones, so that the first layer can tell black from the border
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        above = self.above(x)
        before = self.before(x) + above
        for block in self.blocks:
            above, before = block(above, before)
        return self.last(F.silu(before))


class _Masked(nn.Linear):
    """A linear layer with the weights where `mask` [out, in] is 0 left out."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class CausalMLP(nn.Module):
    """Vectors x [B, D] -> [B, outputs, D] of the elements before each element.

    Feature j of a hidden layer has the degree 1 + j mod (D - 1), and reads features of its degree
    or a smaller one; output i reads features of the degrees below i + 1 (Germain et al. 2015,
    section 3.1, i counted from 0).

    Args:
        dim: D.
        outputs: numbers for each element.
        widths: the hidden sizes.
    """

    def __init__(self, dim: int, outputs: int, widths: Sequence[int]):
        super().__init__()
        degrees = [1 + torch.arange(dim)]
        degrees += [1 + torch.arange(width) % max(dim - 1, 1) for width in widths]
        layers: list[nn.Module] = []
        for before, after in zip(degrees, degrees[1:], strict=False):
            layers += [_Masked(after[:, None] >= before), nn.SiLU()]
        last = torch.arange(dim).repeat(outputs)
        self.outputs = outputs
        self.body = nn.Sequential(*layers, _Masked(last[:, None] >= degrees[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(len(x), self.outputs, -1)
