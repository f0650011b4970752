"""The uniform distribution over images, a control for every number in bits.

P(x) = 256^-D, so -ln P = D ln 256, which is exactly 8 bits per dimension for all images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Uniform(nn.Module):
    """A system (`fastdiff.theory.system`) without parameters. levels: the levels of a pixel."""

    def __init__(self, levels: int = 256):
        super().__init__()
        self.levels = levels
        self.config: dict[str, Any] = {"levels": levels}

    def bound(self, x0: Tensor, labels: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
        """Returns {"uniform": D ln levels} [B] in nats."""
        return {
            "uniform": torch.full(
                (len(x0),), math.prod(x0.shape[1:]) * math.log(self.levels), dtype=torch.float64
            )
        }
