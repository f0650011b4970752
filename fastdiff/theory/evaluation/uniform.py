"""The control of every number in bits: a model to which all images are alike.

P(x) = 256^-D, so -ln P = D ln 256, which is 8 bits a dimension exactly, whatever the images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Uniform(nn.Module):
    """A system (`fastdiff.theory.registry`) with nothing to learn. levels: of a pixel."""

    def __init__(self, levels: int = 256):
        super().__init__()
        self.levels = levels
        self.config: dict[str, Any] = {"levels": levels}

    def bound(self, x0: Tensor, labels: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
        """{"uniform": D ln levels} [B] in nats."""
        return {
            "uniform": torch.full(
                (len(x0),), math.prod(x0.shape[1:]) * math.log(self.levels), dtype=torch.float64
            )
        }
