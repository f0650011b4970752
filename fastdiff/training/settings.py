"""The settings of a training run, with their checks, and a row of its loss curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from .profiles import LARGEST_SIGMA_REL

PRECISIONS = ("float32", "bf16")
# how a step is computed, which changes at most the rounding of sums: a run may continue with others
RESOURCES = ("accumulate", "checkpoint_activations", "compile", "workers")
# what runs did that began before there was such a setting, where that is not the default
_BEFORE = {"fused": False, "accelerate": False}


@dataclass(frozen=True)
class Settings:
    """The settings of a training run.

    Attributes:
        steps, batch_size: the run takes `steps` optimiser steps of `batch_size` examples each, on
            all ranks together.
        lr, warmup: the learning rate rises to lr over `warmup` steps and falls to 0 along half a
            cosine.
        ema: the decay of the averaged weights; the averages are what the model folder holds.
        weight_decay, betas: of AdamW.
        clip_norm: gradients are scaled down to at most this norm.
        seed: of the order of the examples and of all noise.
        precision: `float32`, or `bf16` for matrix products and convolutions in bfloat16 (torch's
            autocast; weights, averages and the optimiser stay in float32).
        fused: AdamW in one kernel, where torch has it for the device. It rounds differently, so
            runs that began without it continue without it.
        accelerate: faster convolutions where there are some (`fastdiff.acceleration.training`).
            They round differently, as `fused` does.
        ema_rel: relative lengths sigma_rel of further averages with power-function profiles, for
            `fastdiff.training.posthoc`.
        ema_snapshots: steps between the stored snapshots of these averages; 0 for 16 of them.
        accumulate: the number of parts of a rank's share of the batch that are computed one after
            the other, to save memory.
        checkpoint_activations: the network's blocks are computed again in the backward pass
            instead of storing their activations.
        compile: torch.compile the network.
        workers: processes that load and decode examples.

    Raises:
        ValueError: for numbers outside their ranges.
    """

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    precision: str = "float32"
    fused: bool = True
    accelerate: bool = True
    ema_rel: tuple[float, ...] = ()
    ema_snapshots: int = 0
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        # JSON and the command line have lists
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "ema_rel", tuple(self.ema_rel))
        checks = {
            "steps >= 1": self.steps >= 1,
            "batch_size >= 1": self.batch_size >= 1,
            "lr > 0": self.lr > 0,
            "warmup >= 0": self.warmup >= 0,
            "ema in [0, 1)": 0 <= self.ema < 1,
            "weight_decay >= 0": self.weight_decay >= 0,
            "clip_norm > 0": self.clip_norm > 0,
            "seed in [0, 2**64)": 0 <= self.seed < 2**64,
            "betas as two numbers in [0, 1)": len(self.betas) == 2
            and all(0 <= b < 1 for b in self.betas),
            f"precision in {list(PRECISIONS)}": self.precision in PRECISIONS,
            f"ema_rel in (0, {LARGEST_SIGMA_REL}]": all(
                0 < s <= LARGEST_SIGMA_REL for s in self.ema_rel
            ),
            "ema_snapshots >= 0": self.ema_snapshots >= 0,
            "accumulate >= 1": self.accumulate >= 1,
            "workers >= 0": self.workers >= 0,
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

    def snapshot_steps(self) -> int:
        """Returns the number of steps between snapshots of the averages `ema_rel`."""
        return self.ema_snapshots or max(1, self.steps // 16)

    def identity(self) -> dict[str, Any]:
        """Returns the settings that a run keeps for its life, as JSON holds them."""
        kept = {k: v for k, v in asdict(self).items() if k not in RESOURCES}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a checkpoint, with what runs did before there were the others."""
    return {**Settings(steps=1).identity(), **_BEFORE, **saved}


class NotFinite(RuntimeError):
    """NaN or an infinity in a loss, a gradient or weights."""


class Entry(NamedTuple):
    """A row of the loss curve: means over the steps since the previous row, and the last lr."""

    step: int
    loss: float
    grad_norm: float
    lr: float
