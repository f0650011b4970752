"""Residual blocks: norm, conditioning and SiLU are one pass, additions part of the convolutions.

For an embedding e, in the form of DDPM (Ho et al. 2020) and, with (a, b) = W e, in that of ADM
(Dhariwal & Nichol 2021):

    h = conv1(silu(norm1(x))) + W e;  y = (skip(x) + conv2(silu(norm2(h)))) / s
    h = conv1(silu(norm1(x)));        y = (skip(x) + conv2(silu(norm2(h)(1 + a) + b))) / s

W e is computed here from the embedding e, or it is a slice of what the network computed for all
blocks at once (`hoist`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Convolution, finish
from .norms import normalize
from .tree import Prepared, differentiates, mix_in, plain, untouched


class Projected:
    """A block with conditioning that may be precomputed, as columns of one matrix."""

    _columns: slice | None = None

    def projection(self) -> nn.Linear:
        raise NotImplementedError

    def code(self, emb: Tensor) -> Tensor:
        """The input of the projection, for an embedding."""
        raise NotImplementedError

    def plain_code(self) -> bool:
        """Whether all blocks of the network have the same `code`."""
        return True

    def conditioning(self, emb: Tensor) -> Tensor:
        return (
            emb[:, self._columns]
            if self._columns is not None
            else self.projection()(self.code(emb))
        )


def hoist(blocks: Iterable[Projected]) -> Hoisted:
    """Takes the blocks' projections out of the blocks, as one matrix product for all of them.

    Each block then reads its conditioning from its columns of the result. Returns the function that
    computes the result.
    """
    begin, blocks = 0, list(blocks)
    for block in blocks:
        width = block.projection().out_features
        block._columns = slice(begin, begin + width)
        begin += width
    return Hoisted(blocks)


class Hoisted:
    """The projections of all blocks in one matrix product."""

    def __init__(self, blocks: list[Projected]) -> None:
        self._blocks, self._stacked = blocks, Prepared()

    def __call__(self, emb: Tensor) -> Tensor:
        projections = [block.projection() for block in self._blocks]
        one_by_one = not all(
            plain(p, nn.Linear) and block.plain_code()
            for block, p in zip(self._blocks, projections, strict=True)
        )
        if not one_by_one:
            weights, biases = [p.weight for p in projections], [p.bias for p in projections]
            one_by_one = differentiates(emb, *weights, *biases)
        if one_by_one:
            parts = zip(self._blocks, projections, strict=True)
            return torch.cat([p(block.code(emb)) for block, p in parts], dim=1)
        code = self._blocks[0].code(emb)
        weight, bias = self._stacked.get((*weights, *biases), _stack)
        return F.linear(code, weight, bias)


def _stack(*values: Tensor | None) -> tuple[Tensor, Tensor | None]:
    n = len(values) // 2
    weights, biases = values[:n], values[n:]
    weight = torch.cat([w for w in weights if w is not None])
    if all(b is None for b in biases):
        return weight, None
    filled = [
        w.new_zeros(w.shape[0]) if b is None else b
        for w, b in zip(weights, biases, strict=True)
        if w is not None
    ]
    return weight, torch.cat(filled)


def convolve(conv: nn.Module, x: Tensor, **after: Any) -> Tensor:
    """conv(x) and what is added to it, computed by the convolution where it can."""
    if isinstance(conv, Convolution) and untouched(conv):
        return conv(x, **after)
    return finish(conv(x), after.get("add"), after.get("residual"), after.get("scale", 1.0))


class Residual(Projected):
    """diffusers' ResnetBlock2D."""

    norm1: nn.GroupNorm
    norm2: nn.GroupNorm
    conv1: nn.Module
    conv2: nn.Module
    dropout: nn.Module
    conv_shortcut: nn.Module | None
    time_emb_proj: nn.Linear | None
    upsample: Any
    downsample: Any
    nonlinearity: nn.Module
    skip_time_act: bool
    time_embedding_norm: str
    output_scale_factor: float

    def projection(self) -> nn.Linear:
        assert self.time_emb_proj is not None
        return self.time_emb_proj

    def code(self, emb: Tensor) -> Tensor:
        return emb if self.skip_time_act else self.nonlinearity(emb)

    def plain_code(self) -> bool:
        return self.skip_time_act or _silu(self.nonlinearity)

    def forward(
        self, input_tensor: Tensor, temb: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        x, h = input_tensor, self._normalized(self.norm1, input_tensor)
        resample = self.upsample if self.upsample is not None else self.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        conditioning = None
        if self.time_emb_proj is not None and temb is not None:
            conditioning = self.conditioning(temb)
        elif temb is not None:
            conditioning = temb[:, :, 0, 0] if temb.ndim == 4 else temb
        if conditioning is not None:
            conditioning = conditioning.expand(
                h.shape[0], -1
            )  # one embedding may serve the whole batch
        if self.time_embedding_norm == "scale_shift":
            assert conditioning is not None
            scale, shift = conditioning.chunk(2, dim=1)
            h = self._normalized(self.norm2, convolve(self.conv1, h), scale=scale, shift=shift)
        else:
            h = self._normalized(self.norm2, convolve(self.conv1, h, add=conditioning))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return convolve(
            self.conv2, self.dropout(h), residual=x, scale=1.0 / self.output_scale_factor
        )

    def _normalized(self, norm: nn.GroupNorm, x: Tensor, **conditioning: Tensor) -> Tensor:
        """The norm, the conditioning and the activation."""
        silu = _silu(self.nonlinearity)
        h = normalize(norm, x, silu=silu, **conditioning)
        return h if silu else self.nonlinearity(h)


def faster_residual(block: Any) -> bool:
    """Converts a ResnetBlock2D of a shared tree; returns whether its parts allow it."""
    norms = all(plain(getattr(block, name, None), nn.GroupNorm) for name in ("norm1", "norm2"))
    known = getattr(block, "time_embedding_norm", None) in ("default", "scale_shift") and getattr(
        block, "pre_norm", True
    )
    if not (norms and known and _silu(getattr(block, "nonlinearity", None))):
        return False
    projection = getattr(block, "time_emb_proj", None)
    if projection is None and block.time_embedding_norm != "default":
        return False
    mix_in(block, Residual)
    return True


def _silu(activation: Any) -> bool:
    return plain(activation, nn.SiLU)


class OwnBlock(Projected):
    """The block of fastdiff.models.UNet."""

    norm1: nn.GroupNorm
    norm2: nn.GroupNorm
    conv1: nn.Module
    conv2: nn.Module
    emb: nn.Linear
    skip: nn.Module

    def projection(self) -> nn.Linear:
        return self.emb

    def code(self, emb: Tensor) -> Tensor:
        return emb

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = convolve(self.conv1, normalize(self.norm1, x))
        scale, shift = self.conditioning(emb).chunk(2, dim=1)
        return convolve(
            self.conv2, normalize(self.norm2, h, scale=scale, shift=shift), residual=self.skip(x)
        )


def faster_own_block(block: Any) -> bool:
    """Converts the block of a fastdiff.models.UNet; returns whether its parts allow it."""
    if not all(plain(getattr(block, name, None), nn.GroupNorm) for name in ("norm1", "norm2")):
        return False
    mix_in(block, OwnBlock)
    return True
