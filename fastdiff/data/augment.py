"""What is drawn for an example: flip, crop, noise within a level, noise of a latent.

All of it is noise of the contract (`fastdiff.rng`), a pure function of (seed, epoch, number of the
example), so it does not depend on the batch or on the process that makes it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import rng

# separates these seeds from those of training, which draws times and noise of the same counters
_DOMAIN = 0x65786D706C730001
_ELEMENTS = 1 << 17


def counter(seed: int, epoch: int, index: Tensor) -> dict[str, Any]:
    """Returns the arguments of `rng` for examples of an epoch."""
    return {"seed": (seed ^ _DOMAIN) % 2**64, "sample_ids": index, "step": epoch}


def flipped(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Returns whether each example is mirrored, bool [B], with probability ½."""
    return rng.uniform(**counter(seed, epoch, index)) < 0.5


def corners(seed: int, epoch: int, index: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Returns (top, left) of each example's crop, int64 [B] each, uniform in [0, room]."""
    facts = counter(seed, epoch, index)
    return rng.randint(room + 1, **facts, word=1), rng.randint(room + 1, **facts, word=2)


def within_level(levels: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Returns (k + u)/128 - 1 for levels k uint8 [B, …], u uniform in (0, 1), float32.

    (Theis et al. 2016, section 3.1: the mass of a level is spread over its width.)
    """
    shape, size = levels.shape[1:], math.prod(levels.shape[1:])
    groups, x = torch.arange(-(-size // 4)), torch.empty(levels.shape, dtype=torch.float32)
    at_once = max(1, _ELEMENTS // max(size, 1))  # the words take over 64 bytes an element
    for start in range(0, len(levels), at_once):
        part = slice(start, start + at_once)
        words = rng.words(groups, **counter(seed, epoch, index[part]), stream=rng.STREAM_FORWARD)
        u = torch.stack(words, dim=-1).flatten(1)[:, :size]
        u = ((u >> 8) | 1).to(torch.float32) * 2.0**-24
        x[part] = (levels[part].to(torch.float32) + u.reshape(-1, *shape)) / 128.0 - 1.0
    return x


def normals(size: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Returns standard normals [B, size], float32, of the reparameterisation's stream."""
    return rng.normals(size, **counter(seed, epoch, index), stream=rng.STREAM_REPARAMETERIZE)
