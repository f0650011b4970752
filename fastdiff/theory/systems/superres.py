"""Super-resolution: p(x | low resolution), with the small image as channels of the network's input.

    small = mean over blocks of x0, on the 256 levels
    loss  = the denoiser's, of network(concat(x_t, enlarged small), t, y)

(Saharia et al. 2021, SR3.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...grad_mode import restored
from ...schedule import Schedule
from ..conditions import Condition
from .denoiser import Denoiser


class SuperResolution(Denoiser):
    """A denoiser of images, conditioned on them at a lower resolution.

    Args:
        network: an `ImageUNet`, any module (x_t, t, image=…, **cond), or its description.
        factor: the number by which height and width are divided.
        others: see `Denoiser`.

    To draw samples, use the network, schedule and settings of `for_sampler()` in a `Sampler` with
    cond={"image": system.enlarge(small), "y": labels}; y may be left out.

    Attributes:
        given: what every density of this system is conditioned on.
    """

    given = ("low resolution",)
    own_conditions = ("image",)

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
        """Returns the small image [B, C, H/factor, W/factor].

        It has the means of blocks, rounded to the 256 levels of an 8-bit file.
        """
        small = F.avg_pool2d(x0, self.factor)
        return ((small + 1) * 127.5).round() / 127.5 - 1

    def enlarge(self, small: Tensor) -> Tensor:
        """Returns the small image enlarged to the size of x_t (bicubic, clamped to [-1, 1]).

        It is the network's condition, and the baseline that super-resolution is compared with.
        """
        return F.interpolate(
            small, scale_factor=self.factor, mode="bicubic", align_corners=False
        ).clamp(-1, 1)

    def for_likelihood(self, labels: Condition = None) -> dict[str, Any]:
        raise ValueError(
            "fastdiff.theory.systems: expected a model of x alone for the probability flow's"
            " likelihood, got super-resolution. Pass its small images as cond to likelihood.nll."
        )

    @restored
    def condition(self, x0: Tensor, labels: Condition) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"image": self.enlarge(self.reduce(x0)), **super().condition(x0, labels)}
