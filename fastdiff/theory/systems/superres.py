"""Super-resolution: p(x | small), the small image given to the network as channels (Saharia et al.
2021, SR3).

small = mean over blocks of x0, on the 256 levels;   loss as the denoiser's, network(concat(x_t, enlarged small), t, y)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...schedule import Schedule
from .denoiser import Denoiser


class SuperResolution(Denoiser):
    """A denoiser of images that knows them at a lower resolution.

    Args:
        network: an `ImageUNet`, or its description. factor: by which height and width are divided.
        others: see `Denoiser`.

    Draw by `Sampler(*for_sampler())` with cond={"image": system.enlarge(small), "y": labels}; y may
    be left out.
    """

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        schedule: Schedule | dict[str, Any],
        factor: int = 2,
        **others: Any,
    ):
        if factor < 2:
            raise ValueError(f"fastdiff.theory.systems: expected factor >= 2, got {factor}.")
        super().__init__(network, schedule, **others)
        self.factor = factor
        self.config |= {"factor": factor}

    def reduce(self, x0: Tensor) -> Tensor:
        """The small image [B, C, H/factor, W/factor]: means of blocks, rounded to 256 levels as a
        file would hold them.
        """
        small = F.avg_pool2d(x0, self.factor)
        return ((small + 1) * 127.5).round() / 127.5 - 1

    def enlarge(self, small: Tensor) -> Tensor:
        """The small image at the size of x_t, bicubic, held in [-1, 1]: the network's condition,
        and the plain answer.
        """
        return F.interpolate(
            small, scale_factor=self.factor, mode="bicubic", align_corners=False
        ).clamp(-1, 1)

    def for_likelihood(self, labels: Tensor | None = None) -> dict[str, Any]:
        raise ValueError(
            "fastdiff.theory.systems: expected a model of x alone for the probability flow's"
            " likelihood, got super-resolution. Pass its small images as cond to likelihood.nll."
        )

    def given(self, x0: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"image": self.enlarge(self.reduce(x0)), **super().given(x0, labels)}
