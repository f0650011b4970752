"""A U-Net with several blocks a level and attention at chosen resolutions.

    h = conv(x)
    down, level l:  blocks times h = [attention of] Block(h, e), each stored; then a stride-2
                    convolution, stored too
    at the bottom:  Block(h, e), attention, Block(h, e)
    up, level l:    blocks + 1 times h = [attention of] Block(concat(h, last stored), e), then
                    nearest-neighbour doubling and a convolution
    output = conv(silu(norm(h)))

with e = silu(MLP(sinusoids(t)) + embedding(y)). With the default options it is the network of Ho et
al. (2020, appendix B), with `scale_shift` the block is that of Nichol & Dhariwal (2021). There is
no dropout: its masks would come from torch's global generator, so that a run which is killed and
resumed would not have the bits of one that is not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .unet import Attention, sinusoids

_WHERE = "fastdiff.models.AttentionUNet"


class ResidualBlock(nn.Module):
    """y = skip(x) + conv2(silu(f(conv1(silu(norm1(x)))))).

    f(h) = norm2(h + W e), or (1 + a) norm2(h) + b with (a, b) = W e for `scale_shift`.
    """

    def __init__(
        self, c_in: int, c_out: int, emb: int, groups: int, eps: float, scale_shift: bool
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * c_out if scale_shift else c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]  # bias=True

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h, e = self.conv1(F.silu(self.norm1(x))), self.emb(emb)[:, :, None, None]
        if self.scale_shift:
            a, b = e.chunk(2, dim=1)
            h = torch.addcmul(b, self.norm2(h), 1 + a)
        else:
            h = self.norm2(h + e)
        return self.skip(x) + self.conv2(F.silu(h))


class Layer(nn.Module):
    """A block, and attention after it where the level has some."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = nn.Identity() if attention is None else attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.block(x, emb))


class Halve(nn.Module):
    """A stride-2 convolution.

    It is padded by one pixel on every side, or with `corner` on the right and at the bottom only,
    as in the code of Ho et al. (2020).
    """

    def __init__(self, channels: int, corner: bool) -> None:
        super().__init__()
        self.corner = corner
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if corner else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.corner else x)


class AttentionUNet(nn.Module):
    """The network (x_t, t, y) -> output [B, out, size, size].

    Args:
        channels: of the images.
        size: height and width; divisible by 2^(levels - 1).
        num_classes: labels are 0 … num_classes - 1; 0 for a network without classes, which ignores
            y.
        widths: channels of each level, finest first; multiples of `groups`.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: the resolutions (heights of the feature map) with attention after each block.
        head_width: channels of an attention head; None for one head of all channels.
        groups, eps: of every group norm.
        emb: width of the embedding of time and label; None for 4 widths[0].
        scale_shift: whether the embedding scales and shifts a block's features, or is added.
        middle: whether the bottom has attention.
        middle_norm: whether that attention has a group norm.
        corner: whether stride-2 convolutions are padded on the right and at the bottom only.
        sine_first, shift: of the sinusoids of t, see `sinusoids`; sine_first puts the sines before
            the cosines.
        null_class: whether the label num_classes means no class, `null_label`. Without it
            `null_label` is None, and a network with classes needs y.
        learn_sigma: whether the output has a second half of channels, for a learned variance.
        out_channels: of the output without that half, `channels` by default.
        time_scale: factor of t before its embedding; 1000 for times in [0, 1].

    Raises:
        ValueError: for a size, width or resolution that does not fit the others.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        num_classes: int = 0,
        widths: tuple[int, ...] | list[int] = (32, 64, 64),
        blocks: int = 2,
        attention: tuple[int, ...] | list[int] = (16,),
        head_width: int | None = None,
        groups: int = 8,
        eps: float = 1e-6,
        emb: int | None = None,
        scale_shift: bool = False,
        middle: bool = True,
        middle_norm: bool = True,
        corner: bool = False,
        sine_first: bool = False,
        shift: float = 0.0,
        null_class: bool = True,
        learn_sigma: bool = False,
        out_channels: int | None = None,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        widths, attention = [int(w) for w in widths], [int(r) for r in attention]
        wide = widths[0] * 4 if emb is None and widths else emb or 0
        sizes = _resolutions(size, widths)
        _check(widths, blocks, groups, wide, head_width, num_classes)
        if not widths[0] / 2 > shift:
            raise ValueError(f"{_WHERE}: expected shift < widths[0]/2, got {shift}.")
        unknown = [r for r in attention if r not in sizes]
        if unknown:
            raise ValueError(
                f"{_WHERE}: expected attention at some of the resolutions {sizes}, got {unknown}."
            )
        self.config: dict[str, Any] = {
            "channels": channels,
            "size": size,
            "num_classes": num_classes,
            "widths": widths,
            "blocks": blocks,
            "attention": attention,
            "head_width": head_width,
            "groups": groups,
            "eps": eps,
            "emb": emb,
            "scale_shift": scale_shift,
            "middle": middle,
            "middle_norm": middle_norm,
            "corner": corner,
            "sine_first": sine_first,
            "shift": shift,
            "null_class": null_class,
            "learn_sigma": learn_sigma,
            "out_channels": out_channels,
            "time_scale": time_scale,
        }
        self.null_label: int | None = num_classes if null_class or not num_classes else None
        self.label = nn.Embedding(num_classes + null_class, wide) if num_classes else None
        self.time = nn.Sequential(nn.Linear(widths[0], wide), nn.SiLU(), nn.Linear(wide, wide))
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)

        def attend(width: int, norm: bool = True) -> Attention:
            made = Attention(width, width // (head_width or width), groups, eps)
            made.norm = made.norm if norm else nn.Identity()
            return made

        def layer(c_in: int, level: int) -> Layer:
            block = ResidualBlock(c_in, widths[level], wide, groups, eps, scale_shift)
            return Layer(block, attend(widths[level]) if sizes[level] in attention else None)

        self.down, self.halve = nn.ModuleList(), nn.ModuleList()
        self.up, self.enlarge = nn.ModuleList(), nn.ModuleList()
        stored, width = [widths[0]], widths[0]
        for level, w in enumerate(widths):
            self.down.append(
                nn.ModuleList(layer(width if i == 0 else w, level) for i in range(blocks))
            )
            stored += [w] * blocks
            width = w
            if level < len(widths) - 1:
                self.halve.append(Halve(w, corner))
                stored.append(w)
        bottom = [ResidualBlock(width, width, wide, groups, eps, scale_shift) for _ in range(2)]
        self.bottom = nn.ModuleList(bottom)
        self.attention = attend(width, middle_norm) if middle else nn.Identity()
        for level in reversed(range(len(widths))):
            ways = nn.ModuleList()
            for _ in range(blocks + 1):
                ways.append(layer(width + stored.pop(), level))
                width = widths[level]
            self.up.append(ways)
            if level:
                self.enlarge.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm_out = nn.GroupNorm(groups, widths[0], eps)
        out = (out_channels or channels) * (2 if learn_sigma else 1)
        self.conv_out = nn.Conv2d(widths[0], out, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]  # bias=True
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.5)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form

    def condition(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns silu(MLP(sinusoids(t)) + embedding(y)) [B, emb], the condition for `decode`.

        Args:
            t: [B] timesteps (int64) or times (float32).
            y: int64 [B] labels; None for the null label for all samples.

        Raises ValueError for y=None if the network has classes and no null label.
        """
        config, dtype = self.config, self.conv_in.weight.dtype
        code = sinusoids(t, config["widths"][0], scale=config["time_scale"], shift=config["shift"])
        if config["sine_first"]:
            code = code.roll(config["widths"][0] // 2, dims=1)
        emb = self.time(code.to(dtype))
        return F.silu(emb if self.label is None else emb + self.label(labels_of(self, t, y)))

    def decode(self, x: Tensor, emb: Tensor) -> Tensor:
        """Returns the output for x [B, C, H, W] and a result [B, emb] of `condition`.

        Raises ValueError for an x that is not of the configured shape.
        """
        check_input(self, x)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        stored = [h]
        for level, layers in enumerate(self.down):
            for layer in layers:  # type: ignore[attr-defined]  # a ModuleList
                h = layer(h, emb)
                stored.append(h)
            if level < len(self.halve):
                h = self.halve[level](h)
                stored.append(h)
        h = self.bottom[1](self.attention(self.bottom[0](h, emb)), emb)
        for level, layers in enumerate(self.up):
            for layer in layers:  # type: ignore[attr-defined]
                h = layer(torch.cat([h, stored.pop()], dim=1), emb)
            if level < len(self.enlarge):
                h = self.enlarge[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns decode(x, condition(t, y)).

        Args:
            x: [B, channels, size, size] in the parameters' dtype.
            t, y: as in `condition`.

        Raises:
            ValueError: for an x that is not of the configured shape.
        """
        return self.decode(x, self.condition(t, y))


def labels_of(network: Any, t: Tensor, y: Tensor | None) -> Tensor:
    """Returns the labels [B] for a network's embedding: y, or null labels where y is None.

    Raises ValueError where the network has none.
    """
    if y is not None:
        return y
    if network.null_label is None:
        raise ValueError(
            f"fastdiff.models.{type(network).__name__}: expected labels y for a network with"
            " classes and without a null label, got none."
        )
    return torch.full(t.shape, network.null_label, dtype=torch.int64, device=t.device)


def check_input(network: Any, x: Tensor) -> None:
    """Raises ValueError for an x that is not [B, channels, size, size] of the network's config."""
    expected = (network.config["channels"], network.config["size"], network.config["size"])
    if tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"fastdiff.models.{type(network).__name__}: expected x of shape [B,"
            f" {', '.join(map(str, expected))}], got {list(x.shape)}. Pass images of the size in"
            " the model's config."
        )


def _resolutions(size: int, widths: Sequence[int]) -> list[int]:
    """Returns the height of the feature map of every level."""
    levels = len(widths)
    if not levels or size < 1 or size % 2 ** (levels - 1):
        raise ValueError(
            f"{_WHERE}: expected widths, and a size divisible by 2^(levels - 1), got {levels}"
            f" levels and size {size}; pad the images or use fewer widths."
        )
    return [size >> level for level in range(levels)]


def _check(
    widths: Sequence[int],
    blocks: int,
    groups: int,
    emb: int,
    head_width: int | None,
    num_classes: int,
) -> None:
    heads = head_width is None or (
        head_width >= 1 and all(w >= head_width and w % head_width == 0 for w in widths)
    )
    if groups < 1 or any(w < 2 or w % groups or w % 2 for w in widths) or not heads:
        raise ValueError(
            f"{_WHERE}: expected even widths that are multiples of groups={groups} and of"
            f" head_width={head_width}, got {list(widths)}."
        )
    if min(blocks, emb) < 1 or num_classes < 0:
        raise ValueError(
            f"{_WHERE}: expected blocks, emb >= 1 and num_classes >= 0, got {blocks}, {emb} and"
            f" {num_classes}."
        )
