"""A U-Net conditioned on an image by channels: output = UNet(concat(x_t, image), t, y).

The image has the shape of x_t; the caller enlarges a smaller one (Saharia et al. 2021, SR3, section
2.2).
"""

from typing import Any

import torch
from torch import Tensor, nn

from .unet import UNet


class ImageUNet(nn.Module):
    """The network (x_t, t, y, image) -> output [B, out_channels, size, size].

    Args: those of `UNet`; `channels` is the number of channels of x_t and, likewise, of the image.
    """

    def __init__(self, channels: int = 1, **arguments: Any) -> None:
        super().__init__()
        arguments.setdefault("out_channels", channels)
        self.unet = UNet(channels=2 * channels, **arguments)
        self.config: dict[str, Any] = {**self.unet.config, "channels": channels}
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
