"""The settings of a training run, with their checks, and a row of its loss curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Settings:
    """The settings of a training run.

    Attributes:
        steps, batch_size: the run takes `steps` optimiser steps of `batch_size` examples each.
        lr, warmup: the learning rate rises to lr over `warmup` steps and falls to 0 along half a
            cosine.
        ema: the decay of the averaged weights; the averages are what the model folder holds.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to at most this norm.
        seed: of the order of the examples and of all noise.
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
        for condition, holds in checks.items():
            if not holds:
                name = condition.split()[0]
                raise ValueError(
                    f"fastdiff.Trainer: expected {condition}, got {getattr(self, name)}."
                )

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step: linear warm-up times half a cosine to 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Entry(NamedTuple):
    """A row of the loss curve: means over the steps since the previous row, and the last lr."""

    step: int
    loss: float
    grad_norm: float
    lr: float
