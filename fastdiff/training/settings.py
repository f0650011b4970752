"""How to train: the numbers of a run, checked, and a row of its loss curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Settings:
    """How to train.

    steps of batch_size examples; lr rises over `warmup` steps and falls to 0 by a half cosine;
    `ema` is the decay of the averaged weights, which are what is kept; gradients are scaled to at
    most `clip_norm`.
    """

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "steps >= 1": self.steps >= 1,
            "batch_size >= 1": self.batch_size >= 1,
            "lr > 0": self.lr > 0,
            "warmup >= 0": self.warmup >= 0,
            "ema in [0, 1)": 0 <= self.ema < 1,
            "weight_decay >= 0": self.weight_decay >= 0,
            "clip_norm > 0": self.clip_norm > 0,
            "seed in [0, 2**64)": 0 <= self.seed < 2**64,
        }
        for wanted, fine in checks.items():
            if not fine:
                name = wanted.split()[0]
                raise ValueError(f"fastdiff.Trainer: expected {wanted}, got {getattr(self, name)}.")

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to 0 at the last step."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Entry(NamedTuple):
    """A row of the loss curve: means over the steps since the row before it, and the last step's
    learning rate.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
