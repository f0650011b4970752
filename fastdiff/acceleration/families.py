"""Network families with separate conditioning: forward(x, t, …) = decode(x, condition(t, …)).

`condition` computes the time and label conditioning of all blocks in one matrix product; a sampler
calls it once, before its loop. The families are diffusers' UNet2DModel and DiTTransformer2DModel,
and fastdiff's UNet.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import faster_norm_and_silu
from .residual import Hoisted, OwnBlock, Residual, hoist
from .tree import mix_in, plain


class DiffusersUNet:
    """diffusers' UNet2DModel."""

    config: Any
    time_proj: nn.Module
    time_embedding: nn.Module
    class_embedding: nn.Module | None
    conv_in: nn.Module
    conv_out: nn.Module
    conv_norm_out: nn.Module
    conv_act: nn.Module
    down_blocks: Any
    up_blocks: Any
    mid_block: nn.Module | None
    _hoisted: Hoisted

    def condition(self, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The conditioning [B, n] of all blocks, for times [B] and labels."""
        dtype = _dtype(self)
        emb = self.time_embedding(self.time_proj(t).to(dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError(
                    "fastdiff.accelerate: expected class_labels for a network with classes, got"
                    " none."
                )
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels)
            emb = emb + self.class_embedding(class_labels).to(dtype)
        elif class_labels is not None:
            raise ValueError(
                "fastdiff.accelerate: expected no class_labels for a network without classes, got"
                " some."
            )
        return self._hoisted(emb)

    def decode(self, x: Tensor, condition: Tensor) -> Tensor:
        """The output for x [B, C, H, W] and the result of `condition`."""
        if self.config.center_input_sample:
            x = 2 * x - 1.0
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for block in self.down_blocks:
            h, states = block(hidden_states=h, temb=condition)
            skips.extend(states)
        if self.mid_block is not None:
            h = self.mid_block(h, condition)
        for block in self.up_blocks:
            n = len(block.resnets)
            h = block(h, tuple(skips[-n:]), condition)
            del skips[-n:]
        return self.conv_out(self.conv_act(self.conv_norm_out(h)))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Like the original's."""
        t = (
            timestep
            if isinstance(timestep, Tensor)
            else torch.tensor([timestep], dtype=torch.int64)
        )
        t = t.to(sample.device).reshape(-1).expand(sample.shape[0])
        out = self.decode(sample, self.condition(t, class_labels))
        return _output(type(self), "UNet2DOutput", out) if return_dict else (out,)


def _dtype(network: Any) -> torch.dtype:
    """The dtype of the first weight. diffusers' `dtype` reads every parameter at each call."""
    return next(network.parameters()).dtype


def _output(cls: type, name: str, sample: Tensor) -> Any:
    """An output of the original's class, which is found in the original's module."""
    made = getattr(sys.modules.get(cls.__module__), name, SimpleNamespace)
    return made(sample=sample)


def faster_diffusers_unet(network: Any) -> None:
    """Gives a UNet2DModel `condition` and `decode` if every block is a known one."""
    blocks = [m for m in network.modules() if isinstance(m, Residual)]
    others = [
        m
        for m in network.modules()
        if type(m).__name__.startswith("ResnetBlock") and not isinstance(m, Residual)
    ]
    skips = any(hasattr(b, "skip_conv") for b in (*network.down_blocks, *network.up_blocks))
    alike = {block.skip_time_act for block in blocks}
    if others or skips or len(alike) != 1 or any(block.time_emb_proj is None for block in blocks):
        return
    # with this embedding the output is divided by the time, which decode does not get
    if network.config.time_embedding_type == "fourier":
        return
    mix_in(network, DiffusersUNet, _hoisted=hoist(blocks))


class OwnUNet:
    """fastdiff.models.UNet."""

    _hoisted: Hoisted

    def condition(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The conditioning [B, n] of all blocks, for times [B] and labels [B]."""
        return self._hoisted(super().condition(t, y))  # type: ignore[misc]


def faster_own_unet(network: Any) -> None:
    """Gives a fastdiff.models.UNet a `condition` for all blocks if every block was converted."""
    blocks = [m for m in network.modules() if isinstance(m, OwnBlock)]
    if blocks and len(blocks) == len([*network.down, *network.mid, *network.up]):
        mix_in(network, OwnUNet, _hoisted=hoist(blocks))


class ModulatedNorm:
    """The adaLN-Zero norm of a DiT block.

    It takes (shift, scale, gate) of both halves from the network's conditioning.
    """

    norm: nn.LayerNorm
    _columns: slice

    def forward(self, x: Tensor, timestep: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        shift, scale, gate, *mlp = timestep[:, self._columns].chunk(6, dim=1)
        return torch.addcmul(shift[:, None], self.norm(x), 1 + scale[:, None]), gate, *mlp


class DiT:
    """diffusers' DiTTransformer2DModel."""

    transformer_blocks: Any
    pos_embed: nn.Module
    norm_out: nn.LayerNorm
    proj_out_1: nn.Linear
    proj_out_2: nn.Linear
    patch_size: int
    out_channels: int

    def condition(self, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """(shift, scale, gate) of all blocks and (shift, scale) of the output, [B, n].

        Every block has its own embedding.
        """
        columns, dtype = [], _dtype(self)
        for block in self.transformer_blocks:
            emb = block.norm1.emb(t, class_labels, hidden_dtype=dtype)
            columns.append(block.norm1.linear(block.norm1.silu(emb)))
            if len(columns) == 1:
                last = self.proj_out_1(F.silu(emb))
        return torch.cat([*columns, last], dim=1)

    def decode(self, x: Tensor, condition: Tensor) -> Tensor:
        """The output for x [B, C, H, W] and the result of `condition`."""
        h = self.pos_embed(x)
        for block in self.transformer_blocks:
            h = block(h, timestep=condition)
        shift, scale = condition[:, -self.proj_out_1.out_features :].chunk(2, dim=1)
        h = self.proj_out_2(torch.addcmul(shift[:, None], self.norm_out(h), 1 + scale[:, None]))
        p, side = self.patch_size, int(h.shape[1] ** 0.5)
        h = h.unflatten(2, (p, p, self.out_channels)).unflatten(1, (side, side))
        return h.permute(0, 5, 1, 3, 2, 4).reshape(
            x.shape[0], self.out_channels, side * p, side * p
        )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Any = None,
        class_labels: Any = None,
        cross_attention_kwargs: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """Like the original's."""
        if cross_attention_kwargs:
            raise ValueError(
                "fastdiff.accelerate: expected no cross_attention_kwargs. Use the original network"
                " for them."
            )
        out = self.decode(hidden_states, self.condition(timestep, class_labels))
        return _output(type(self), "Transformer2DModelOutput", out) if return_dict else (out,)


def faster_dit(network: Any) -> bool:
    """Gives a DiTTransformer2DModel `condition` and `decode` if its blocks are known ones."""
    norms: list[Any] = [
        getattr(block, "norm1", None) for block in getattr(network, "transformer_blocks", ())
    ]
    known = all(
        type(n).__name__ == "AdaLayerNormZero"
        and getattr(n, "emb", None) is not None
        and plain(n.silu, nn.SiLU)
        and plain(n.linear, nn.Linear)
        for n in norms
    )
    if not norms or not known:
        return False
    begin = 0
    for norm in norms:
        width = norm.linear.out_features
        mix_in(norm, ModulatedNorm, _columns=slice(begin, begin + width))
        begin += width
    mix_in(network, DiT)
    return True


def fuse_output(network: Any) -> None:
    """Makes conv_norm_out and conv_act of diffusers' U-Nets one pass."""
    if plain(getattr(network, "conv_norm_out", None), nn.GroupNorm) and plain(
        getattr(network, "conv_act", None), nn.SiLU
    ):
        faster_norm_and_silu(network, "conv_norm_out", "conv_act")
