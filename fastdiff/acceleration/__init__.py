"""Networks made faster: the same weights and the same function, computed with less waste
(docs/accelerate.md).

What is faster depends on the device. On the CPU: 3x3 convolutions by Winograd's algorithm, 1x1
    convolutions as matrix
products over pixels, activations channels last. Everywhere: norm, conditioning and SiLU in one
    pass, q, k and v in one
matrix product, and the time and label code of all blocks apart, so that a sampler computes it
before its loop.
"""

from .convert import accelerate

__all__ = ["accelerate"]
