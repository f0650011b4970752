"""The `torch` backend: every fused op as plain tensor operations, for any device torch runs on.

It is the fallback that always works, and the formula a gradient is taken of. Operation order and rounding are those of
kernels/README.md, so its results equal the kernels' bit for bit in float32 and float64 (float64 exp aside).
"""

from .q_sample import q_sample
from .randn import randn
from .reverse_step import reverse_step

__all__ = ["q_sample", "randn", "reverse_step"]
