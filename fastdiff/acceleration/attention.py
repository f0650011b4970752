"""Self-attention over pixels or tokens, y = x + W softmax(q k' / sqrt d) v.

q, k and v are one matrix product. Activations stored channels last are a sequence of tokens
already; nothing is transposed or copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import normalize
from .tree import Prepared, differentiates, mix_in, plain


class SelfAttention:
    """diffusers' Attention with its default processor, as self-attention.

    It attends over pixels with a group norm, or over tokens.
    """

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.ModuleList
    group_norm: nn.GroupNorm | None
    heads: int
    residual_connection: bool
    rescale_output_factor: float
    processor: Any
    _stacked: Prepared

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **arguments: Any,
    ) -> Tensor:
        linears = (self.to_q, self.to_k, self.to_v)
        # something was put on them: they compute for themselves
        if not all(plain(linear, nn.Linear) for linear in linears):
            return super().forward(  # type: ignore[misc]
                hidden_states, encoder_hidden_states, attention_mask, **arguments
            )
        weights = [p for linear in linears for p in (linear.weight, linear.bias)]
        default = type(self.processor).__name__ == "AttnProcessor2_0" and not (
            arguments.keys() - {"temb"}
        )
        if (
            not default
            or encoder_hidden_states is not None
            or attention_mask is not None
            or hidden_states.dtype != self.to_q.weight.dtype
            or differentiates(hidden_states, *weights)
        ):
            return super().forward(  # type: ignore[misc]
                hidden_states, encoder_hidden_states, attention_mask, **arguments
            )
        x, norm = hidden_states, self.group_norm
        images = x.ndim == 4
        if norm is not None:
            # over tokens the channels come last
            h = normalize(norm, x if images else x.transpose(1, 2), silu=False)
        else:
            h = x if images else x.transpose(1, 2)
        h = h.flatten(2).transpose(1, 2)  # [B, n, C]
        weight, bias = self._stacked.get(tuple(weights), _stack)
        batch, n, _ = h.shape
        q, k, v = F.linear(h, weight, bias).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, -1)
        y = self.to_out[1](self.to_out[0](y))
        if images:
            y = y.transpose(1, 2).unflatten(2, x.shape[2:])
        if self.residual_connection:
            y = y + x
        return y if self.rescale_output_factor == 1 else y / self.rescale_output_factor


def _stack(*values: Tensor | None) -> tuple[Tensor, Tensor | None]:
    weights, biases = (
        [v for v in values[0::2] if v is not None],
        [v for v in values[1::2] if v is not None],
    )
    return torch.cat(weights), torch.cat(biases) if biases else None


def faster_attention(attention: Any) -> bool:
    """Converts an Attention of a shared tree; returns whether its parts allow it."""
    linears = [getattr(attention, name, None) for name in ("to_q", "to_k", "to_v")]
    if not all(plain(linear, nn.Linear) for linear in linears):
        return False
    shapes = {
        (linear.in_features, linear.out_features, linear.bias is None)
        for linear in linears
        if linear is not None
    }
    absent = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")
    norm, out = getattr(attention, "group_norm", None), getattr(attention, "to_out", None)
    if len(shapes) != 1 or any(getattr(attention, name, None) is not None for name in absent):
        return False
    if (
        not (norm is None or plain(norm, nn.GroupNorm))
        or not isinstance(out, nn.ModuleList)
        or len(out) != 2
    ):
        return False
    if not hasattr(attention, "processor"):
        return False
    mix_in(attention, SelfAttention, _stacked=Prepared())
    return True


class OwnAttention:
    """The attention of fastdiff.models.UNet."""

    norm: nn.GroupNorm
    qkv: nn.Linear
    out: nn.Linear
    heads: int

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = normalize(self.norm, x, silu=False)
        tokens = h.flatten(2).transpose(1, 2)
        q, k, v = (
            self.qkv(tokens)
            .unflatten(2, (3, self.heads, channels // self.heads))
            .permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(y).transpose(1, 2).unflatten(2, (height, width))


def faster_own_attention(attention: Any) -> bool:
    """Converts the attention of a fastdiff.models.UNet; returns whether its parts allow it."""
    if not plain(getattr(attention, "norm", None), nn.GroupNorm):
        return False
    mix_in(attention, OwnAttention)
    return True
