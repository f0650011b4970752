"""Fourier features of 8-bit levels: what lets a network see noise much finer than its input's
range.

    sin(2^n pi x'), cos(2^n pi x'),   x' = x 255/256,   beside x                     (Kingma et al. 2021, appendix C)

Levels k/127.5 - 1 lie 2/256 apart in x', so that n = 8 has a period of one level: at little noise
its sine is, up to a factor, the distance from the nearest level, which is the noise. n = 7 tells
even levels from odd ones. The lower ones make
something of unit size of noise at each scale between: without them a network spends its training on
    learning to amplify.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = (2, 3, 4, 5, 6, 7, 8)  # the exponents for 8-bit data


def features(x: Tensor, exponents: Sequence[int]) -> Tensor:
    """x [B, C, …] with its features as further channels: [B, C (1 + 2 len(exponents)), …]."""
    found = [x]
    for n in exponents:
        angle = (2.0**n * math.pi * 255 / 256) * x
        found += [angle.sin(), angle.cos()]
    return torch.cat(found, 1) if exponents else x
