"""The part of a [batch, size] tensor that a program computes: S rows (samples), and of each of them
`each` chunks of E elements, one after the other.

Samples are on grid axis 0, so that their ids and coefficients are read once and no index is divided
per element. Program k on axis 1 computes the chunks from k * each, in a loop, so that what a sample
needs is set up once for several chunks. The host chooses `each` (launch/common.py). Chunks don't
overlap, and an element's bits don't depend on `each`.

Values of a sample are a [S, 1] column. Offsets are int64: products with `size` start from the int64
sample. Kernels name the pointers to values of a sample, and to tables, in
do_not_specialize_on_alignment: their loads are narrow at any address, so one variant serves them
all, such as the second row of a [2, batch] tensor at odd batch sizes. The addresses of elements are
specialised, because 16-byte loads depend on them.
"""

import triton
import triton.language as tl


@triton.jit
def samples(batch, S: tl.constexpr):
    """The program's samples b [S, 1] (int64), and which of them exist."""
    b = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)[:, None]
    return b, b < batch


@triton.jit
def share(size, each, E: tl.constexpr):
    """The program's first chunk, and the one after its last.

    An empty sample has one chunk, without elements.
    """
    begin = tl.program_id(1) * each
    return begin, tl.minimum(begin + each, tl.maximum((size - 1) // E + 1, 1))


@triton.jit
def tile(chunk, size, live, E: tl.constexpr):
    """The chunk's first element (int64), offsets e [1, E], and which elements [S, E] exist."""
    first = chunk.to(tl.int64) * E
    e = tl.arange(0, E)[None, :]
    return first, e, live & (e < size - first)


@triton.jit
def at(pointer, sample, size, first, e, WIDTH: tl.constexpr = 1):
    """Addresses [S, E] of the tile, in a tensor with rows `sample` (int64) of size * WIDTH
    elements.
    """
    return pointer + ((sample * size * WIDTH + first) + e)


@triton.jit
def strided(pointer, stride, STEP: tl.constexpr, b, first, e, live, inside, COMPUTE: tl.constexpr):
    """The tile of a view [batch, size] with any stride between samples.

    With STEP 0, one value per sample, it is [S, 1].
    """
    if STEP == 0:
        return tl.load(pointer + b * stride, mask=live, other=0.0).to(COMPUTE)
    else:
        return tl.load(pointer + ((b * stride + first) + e), mask=inside, other=0.0).to(COMPUTE)
