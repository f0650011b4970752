"""A class-conditional U-Net small enough for two CPU cores.

    h_0 = conv(x)
    down, level l:  h = Block(h, e), stored as skip_l, then a stride-2 convolution
    at the bottom:  Block(h, e), self-attention, Block(h, e)
    up, level l:    h = Block(concat(h, skip_l), e), then a 1×1 convolution and nearest-neighbour
                    doubling
    output = conv(silu(norm(h)))

with e = silu(MLP(sinusoids(t)) + embedding(y)) (Ho et al. 2020, section 4 and appendix B; Nichol &
Dhariwal 2021 for the scale-shift norm). The label after the last class is the null label of
classifier-free guidance (Ho & Salimans 2022). It means "no class" and is trained on a share of the
examples.

On a CPU, oneDNN's convolutions are fastest with channels-last activations; `forward` converts its
input once and all activations stay in that layout.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(
    t: Tensor,
    dim: int,
    max_period: float = 10_000.0,
    scale: float = 1.0,
    shift: float | None = None,
) -> Tensor:
    """Returns the sinusoidal embedding of times.

        [cos(s t w_i), sin(s t w_i)],   w_i = max_period^(-i / (dim/2 - shift))

    Args:
        t: [B] times, integer or floating point.
        dim: the width of the embedding, even.
        max_period: the longest wave length over 2 pi.
        scale: s; 1000 for times in [0, 1], so that their embedding is that of a thousand timesteps.
        shift: 1 where the longest wave is exactly max_period (Ho et al. 2020's code), or 0. None is
            0 with the constants divided first: it rounds otherwise, as the shipped weights know it.

    Returns:
        [B, dim] float32.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    if shift is None:
        freqs = torch.exp(index * (-math.log(max_period) / half))
    else:
        freqs = torch.exp(-math.log(max_period) * index / (half - shift))
    angle = (t.to(torch.float32) * scale)[:, None] * freqs
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Block(nn.Module):
    """y = skip(x) + conv2(silu((1 + a) norm(conv1(silu(norm(x)))) + b)).

    (a, b) is a linear map of the embedding.
    """

    def __init__(self, c_in: int, c_out: int, emb: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]  # bias=True

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        a, b = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(b, self.norm2(h), 1 + a)
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """y = x + W softmax(q k^T / sqrt(d)) v over the H W positions, q, k, v linear in norm(x)."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.norm: nn.Module = nn.GroupNorm(groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)
        q, k, v = (
            self.qkv(tokens)
            .reshape(b, h * w, 3, self.heads, c // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c)
        return x + self.out(y).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """The network (x_t, t, y) -> output [B, out_channels, size, size].

    Args:
        channels: of the images.
        size: height and width; divisible by 2^(levels - 1).
        num_classes: labels are 0 … num_classes - 1; `null_label` = num_classes means no class. 0
            for a network without classes.
        widths: channels of each level, finest first; multiples of `groups`, the last one also of
            `heads`.
        mid_blocks: blocks at the coarsest level between the way down and the way up.
        emb: width of the embedding of time and label, even.
        heads: of the attention at the coarsest level.
        groups: of every group norm.
        out_channels: of the output, `channels` by default; twice as many for a learned variance.
        time_scale: factor of t before its embedding; 1000 for times in [0, 1].

    Raises:
        ValueError: for a size or width that is not such a multiple, or an odd emb.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        num_classes: int = 10,
        widths: tuple[int, ...] | list[int] = (32, 64, 96),
        mid_blocks: int = 2,
        emb: int = 128,
        heads: int = 4,
        groups: int = 8,
        out_channels: int | None = None,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        widths = [int(w) for w in widths]
        if not widths or any(w < 1 or w % groups for w in widths) or widths[-1] % heads:
            raise ValueError(
                f"fastdiff.models.UNet: expected widths that are multiples of groups={groups}, the"
                f" last one of heads={heads} too, got {widths}."
            )
        if emb < 2 or emb % 2:
            raise ValueError(f"fastdiff.models.UNet: expected an even emb, got {emb}.")
        if size < 1 or size % 2 ** (len(widths) - 1):
            raise ValueError(
                f"fastdiff.models.UNet: expected a size divisible by {2 ** (len(widths) - 1)} for"
                f" {len(widths)} levels, got {size}; pad the images or use fewer widths."
            )
        self.config: dict[str, Any] = {
            "channels": channels,
            "size": size,
            "num_classes": num_classes,
            "widths": widths,
            "mid_blocks": mid_blocks,
            "emb": emb,
            "heads": heads,
            "groups": groups,
        }
        # left out where they say nothing, so that folders written before them stay as they were
        self.config |= {} if out_channels is None else {"out_channels": out_channels}
        self.config |= {} if time_scale == 1.0 else {"time_scale": time_scale}
        self.time_scale = time_scale
        self.null_label = num_classes
        self.label = nn.Embedding(num_classes + 1, emb)
        self.time = nn.Sequential(nn.Linear(emb, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(w, w, emb, groups) for w in widths)
        self.halve = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.mid = nn.ModuleList(
            Block(widths[-1], widths[-1], emb, groups) for _ in range(mid_blocks)
        )
        self.attention = Attention(widths[-1], heads, groups)
        self.up = nn.ModuleList(Block(2 * w, w, emb, groups) for w in widths)
        # 1x1 before the doubling: the 3x3 of the next block smooths it, at a quarter of the cost of
        # one after it
        self.narrow = nn.ModuleList(
            nn.Conv2d(b, a, 1) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.norm_out = nn.GroupNorm(groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels or channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]  # bias=True
        nn.init.normal_(self.label.weight, std=0.5)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form

    def condition(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns silu(MLP(sinusoids(t)) + embedding(y)) [B, emb], the condition for `decode`.

        Args:
            t: [B] timesteps (int64) or times (float32).
            y: int64 [B] in [0, num_classes]; None for the null label for all samples.
        """
        code = sinusoids(t, self.config["emb"], scale=self.time_scale).to(self.label.weight.dtype)
        if y is None:
            y = torch.full(t.shape, self.null_label, dtype=torch.int64, device=t.device)
        return F.silu(self.time(code) + self.label(y))

    def decode(self, x: Tensor, emb: Tensor) -> Tensor:
        """Returns the output for x [B, C, H, W] and a result [B, emb] of `condition`.

        Raises ValueError for an x that is not of the configured shape.
        """
        expected = (self.config["channels"], self.config["size"], self.config["size"])
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"fastdiff.models.UNet: expected x of shape [B, {', '.join(map(str, expected))}],"
                f" got {list(x.shape)}. Pass images of the size in the model's config."
            )
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, block in enumerate(self.down):
            h = block(h, emb)
            skips.append(h)
            if level < len(self.halve):
                h = self.halve[level](h)
        for i, block in enumerate(self.mid):
            if i == len(self.mid) // 2:
                h = self.attention(h)
            h = block(h, emb)
        for level in reversed(range(len(self.up))):
            h = self.up[level](torch.cat([h, skips[level]], dim=1), emb)
            if level:
                h = F.interpolate(self.narrow[level - 1](h), scale_factor=2.0, mode="nearest")
        return self.conv_out(F.silu(self.norm_out(h)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns decode(x, condition(t, y)).

        Args:
            x: [B, channels, size, size] in the parameters' dtype.
            t: [B] timesteps (int64) or times (float32).
            y: int64 [B] labels in [0, num_classes], where num_classes is the null label; None for
                the null label for all samples.

        Raises:
            ValueError: for an x that is not of the configured shape.
        """
        return self.decode(x, self.condition(t, y))
