"""A classifier of noised images, (x_t, t) -> logits: the downsampling half of the U-Net.

    h = conv(x)
    level l: h = Block(h, e), then a stride-2 convolution, after the last level attention
    logits = W mean(silu(norm(h)))

with e = silu(MLP(sinusoids(t))) (Dhariwal & Nichol 2021, section 4: the downsampling trunk of the
U-Net).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .unet import Attention, Block, sinusoids


class Classifier(nn.Module):
    """The network (x_t [B, C, H, W], t [B]) -> logits [B, num_classes].

    Args:
        channels, size: of the images.
        num_classes: the number of logits.
        widths: channels of each level, finest first; multiples of `groups`, the last one also of
            `heads`.
        emb: width of the time embedding, even.
        heads: of the attention at the coarsest level.
        groups: of every group norm.
        time_scale: factor of t before its embedding; 1000 for times in [0, 1].

    Raises:
        ValueError: for widths that are not such multiples, an odd emb, or no classes.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        num_classes: int = 10,
        widths: tuple[int, ...] | list[int] = (32, 64, 96),
        emb: int = 64,
        heads: int = 4,
        groups: int = 8,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        widths = [int(w) for w in widths]
        if (
            not widths
            or any(w < 1 or w % groups for w in widths)
            or widths[-1] % heads
            or num_classes < 1
            or emb < 2
            or emb % 2
        ):
            raise ValueError(
                "fastdiff.models.Classifier: expected num_classes >= 1, an even emb and widths"
                f" that are multiples of groups={groups}, the last one of heads={heads} too, got"
                f" {num_classes}, {emb} and {widths}."
            )
        self.config: dict[str, Any] = {
            "channels": channels,
            "size": size,
            "num_classes": num_classes,
            "widths": widths,
            "emb": emb,
            "heads": heads,
            "groups": groups,
            "time_scale": time_scale,
        }
        self.emb, self.time_scale = emb, time_scale
        self.time = nn.Sequential(nn.Linear(emb, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(Block(w, w, emb, groups) for w in widths)
        self.halve = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attention = Attention(widths[-1], heads, groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1])
        self.linear_out = nn.Linear(widths[-1], num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Returns the logits [B, num_classes].

        x: [B, channels, size, size]; t: [B] timesteps (int64) or times (float32).
        """
        expected = (self.config["channels"], self.config["size"], self.config["size"])
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                "fastdiff.models.Classifier: expected x of shape [B,"
                f" {', '.join(map(str, expected))}], got {list(x.shape)}. Pass images of the size"
                " in the model's config."
            )
        emb = self.time(
            sinusoids(t, self.emb, scale=self.time_scale).to(self.linear_out.weight.dtype)
        )
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for level, block in enumerate(self.blocks):
            h = block(h, emb)
            if level < len(self.halve):
                h = self.halve[level](h)
        return self.linear_out(F.silu(self.norm_out(self.attention(h))).mean((2, 3)))
