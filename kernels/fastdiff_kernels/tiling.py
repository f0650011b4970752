"""Which part of a [batch, size] tensor a program owns: S whole rows (samples) by E elements.

Samples lie along grid axis 0, chunks of the element axis along axes 1 and 2 (axis 1 ends at 65,535). What belongs to a
sample is a [S, 1] column, so nothing is divided per element, and offsets are int64.
"""

import triton
import triton.language as tl


@triton.jit
def tile(batch, size, S: tl.constexpr, E: tl.constexpr):
    """Samples b [S, 1] and the chunk's first element (int64), offsets e [1, E], and the masks of samples and elements."""
    b = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)[:, None]
    first = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * E
    e = tl.arange(0, E)[None, :]
    live = b < batch
    return b, first, e, live, live & (e < size - first)


@triton.jit
def at(pointer, sample, size, first, e):
    """Addresses [S, E] of the tile, in a tensor whose rows `sample` (int64) have `size` elements."""
    return pointer + (sample * size + first) + e
