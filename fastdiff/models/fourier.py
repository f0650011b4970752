"""Fourier features of 8-bit levels: they resolve noise much finer than the range of the input.

    x, sin(2^n pi x'), cos(2^n pi x'),   x' = x 255/256         (Kingma et al. 2021, appendix C)

Levels k/127.5 - 1 are 2/256 apart in x', so n = 8 has a period of one level: at low noise its sine
is, up to a factor, the distance from the nearest level, which is the noise. n = 7 distinguishes
even levels from odd ones. The lower exponents turn noise of each scale in between into features of
unit size; without them, much of a network's training goes into learning to amplify its input.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = (2, 3, 4, 5, 6, 7, 8)  # the exponents for 8-bit data


def features(x: Tensor, exponents: Sequence[int]) -> Tensor:
    """Returns x [B, C, …] with its features as more channels: [B, C (1 + 2 len(exponents)), …]."""
    parts = [x]
    for n in exponents:
        angle = (2.0**n * math.pi * 255 / 256) * x
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, 1) if exponents else x
