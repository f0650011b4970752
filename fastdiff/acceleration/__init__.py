"""Networks made faster: the same weights and the same function, computed with less work.

What is faster depends on the device (docs/accelerate.md). On the CPU, 3x3 convolutions use
Winograd's algorithm, 1x1 convolutions are matrix products over pixels, and activations are stored
channels last. On every device norm, conditioning and SiLU are one pass, q, k and v are one matrix
product, and the conditioning of all blocks is computed separately, so that a sampler computes it
before its loop.
"""

from .convert import accelerate

__all__ = ["accelerate"]
