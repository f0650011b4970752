"""Sums over a sample, kernels/README.md section 7: chunks of CHUNK elements, each by a fixed tree,
then over the chunks.

A tile holds one whole chunk of each of its samples (short samples share a program), so a chunk's
sum depends on the sample alone. tl.sum over a row would add in an order that follows the registers'
layout, hence the alignment of the pointers; over two elements it leaves no choice, so the tree is
spelled out: neighbours are added until one is left.
"""

import triton
import triton.language as tl

CHUNK = tl.constexpr(1024)
IN_FLIGHT = tl.constexpr(16)  # loads under way while partial sums are added one after the other


@triton.jit
def folded(total, S: tl.constexpr, E: tl.constexpr):
    """[S, E] to [S, 1]: neighbours are added until one is left."""
    if E == 1:
        return total
    else:
        return folded(tl.sum(total.reshape(S, E // 2, 2), 2), S, E // 2)


@triton.jit
def row_sum(terms, inside, S: tl.constexpr, E: tl.constexpr):
    """[S, 1]: each row's sum; what lies outside the sample counts exactly 0, whatever it holds."""
    return folded(tl.where(inside, terms, 0.0), S, E)


@triton.jit
def mean_of(total, weight, b, live, size):
    """weight * (total / size) in float64; 0 for an empty sample."""
    count = (b * 0 + size).to(tl.float64)  # size may be a constant, the sum never is
    mean = total.to(tl.float64) / tl.where(count > 0.0, count, 1.0)
    if weight is not None:
        mean = tl.load(weight + b, mask=live, other=0.0).to(tl.float64) * mean
    return mean


@triton.jit
def store_sum(out, workspace, weight, total, b, first, live, size, MEAN: tl.constexpr):
    """The sums of a tile's rows: the result where a sample is one chunk (no workspace), else its
    partial sum.
    """
    if workspace is None:
        if MEAN:
            total = mean_of(total, weight, b, live, size)
        tl.store(out + b, total.to(out.dtype.element_ty), mask=live)
    else:
        chunks = (size + CHUNK - 1) // CHUNK
        tl.store(workspace + b * chunks + first // CHUNK, total, mask=live & (first < size))


@triton.jit(do_not_specialize=["batch"])
def sum_chunks_kernel(out, workspace, weight, batch, size, S: tl.constexpr, MEAN: tl.constexpr):
    """Adds each sample's partial sums in order, in float64."""
    b = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)
    live = b < batch
    chunks = (size + CHUNK - 1) // CHUNK
    total = tl.zeros([S], tl.float64)
    begin = tl.full([], 0, tl.int64)
    while begin < chunks:
        for i in tl.static_range(IN_FLIGHT):
            chunk = begin + i
            part = tl.load(workspace + b * chunks + chunk, mask=live & (chunk < chunks), other=0.0)
            total = tl.where(chunk < chunks, total + part.to(tl.float64), total)
        begin += IN_FLIGHT
    if MEAN:
        total = mean_of(total, weight, b, live, size)
    tl.store(out + b, total.to(out.dtype.element_ty), mask=live)
