"""A network conditioned on an image by channels: output = network(concat(x_t, image), t, y).

The image has the shape of x_t; the caller enlarges a smaller one (Saharia et al. 2021, SR3, section
2.2).
"""

from typing import Any

import torch
from torch import Tensor, nn

from .attention_unet import AttentionUNet
from .dit import DiT
from .unet import UNet

_INNER: dict[str, type[Any]] = {"AttentionUNet": AttentionUNet, "DiT": DiT, "UNet": UNet}


class ImageUNet(nn.Module):
    """The network (x_t, t, y, image) -> output [B, out_channels, size, size].

    Args:
        channels: of x_t and, likewise, of the image.
        inner: the class of the network inside: `UNet`, `AttentionUNet` or `DiT`.
        arguments: those of that class.

    Raises ValueError for another class.
    """

    def __init__(self, channels: int = 1, inner: str = "UNet", **arguments: Any) -> None:
        super().__init__()
        if inner not in _INNER:
            raise ValueError(
                f"fastdiff.models.ImageUNet: expected inner in {sorted(_INNER)}, got {inner!r}."
            )
        if arguments.get("out_channels") is None:
            arguments["out_channels"] = channels
        self.unet = _INNER[inner](channels=2 * channels, **arguments)
        self.config: dict[str, Any] = {**self.unet.config, "channels": channels}
        # left out where it says nothing, so that folders written before it stay as they were
        self.config |= {} if inner == "UNet" else {"inner": inner}
        self.null_label = self.unet.null_label

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, image: Tensor) -> Tensor:
        """Returns the output [B, out_channels, size, size].

        Args:
            x, image: [B, channels, size, size].
            t, y: as in `UNet`.

        Raises ValueError for an image of another shape than x's.
        """
        if image.shape != x.shape:
            raise ValueError(
                f"fastdiff.models.ImageUNet: expected an image of x's shape {list(x.shape)}, got"
                f" {list(image.shape)}. Enlarge it first."
            )
        return self.unet(torch.cat([x, image.to(x.dtype)], dim=1), t, y)
