"""The oracle: every fused op in plain NumPy, written from kernels/README.md and the papers alone.

Nothing here is used at run time; tests and benchmarks compare the other backends with it. Noise follows the contract in
float32 to the bit; everything else is evaluated in the compute type (float64 for float64 inputs, else float32), so that
`dtype=np.float64` states give the float64 truth.
"""

from .q_sample import q_sample
from .randn import philox4x32, randn
from .reverse_step import COLUMNS, reverse_step

__all__ = ["COLUMNS", "philox4x32", "q_sample", "randn", "reverse_step"]
