"""The part of a [batch, size] tensor that a program computes: S rows (samples) by E elements.

Samples are on grid axis 0, chunks of the element axis on axes 1 and 2 (axis 1 is limited to
65,535). Values of a sample are a [S, 1] column, so no index is divided per element. Offsets are
int64.
"""

import triton
import triton.language as tl


@triton.jit
def tile(batch, size, S: tl.constexpr, E: tl.constexpr):
    """Samples b [S, 1], the chunk's first element (int64), offsets e [1, E], and both masks."""
    b = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)[:, None]
    first = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * E
    e = tl.arange(0, E)[None, :]
    live = b < batch
    return b, first, e, live, live & (e < size - first)


@triton.jit
def at(pointer, sample, size, first, e):
    """Addresses [S, E] of the tile, in a tensor with rows `sample` (int64) of `size` elements."""
    return pointer + (sample * size + first) + e


@triton.jit
def strided(pointer, stride, STEP: tl.constexpr, b, first, e, live, inside, COMPUTE: tl.constexpr):
    """The tile of a view [batch, size] with any stride between samples.

    With STEP 0, one value per sample, it is [S, 1].
    """
    if STEP == 0:
        return tl.load(pointer + b * stride, mask=live, other=0.0).to(COMPUTE)
    else:
        return tl.load(pointer + (b * stride + first) + e, mask=inside, other=0.0).to(COMPUTE)
