"""Sums over a sample, kernels/README.md section 7: a fixed tree in chunks of CHUNK elements, then
over the chunks.

A tile contains one whole chunk of each of its samples (short samples share a program), so a chunk's
sum depends on the sample only. tl.sum over a row would add in an order that depends on the layout
of the registers and thus on the alignment of the pointers. Over two elements its order is unique,
so the tree is explicit: neighbours are added until one value is left.
"""

import triton
import triton.language as tl

from .log_prob import log_prob_of

CHUNK = tl.constexpr(1024)


@triton.jit
def folded(total, S: tl.constexpr, E: tl.constexpr):
    """[S, E] to [S, 1]: neighbours are added until one is left."""
    if E == 1:
        return total
    else:
        return folded(tl.sum(total.reshape(S, E // 2, 2), 2), S, E // 2)


@triton.jit
def row_sum(terms, inside, S: tl.constexpr, E: tl.constexpr):
    """[S, 1]: each row's sum; elements outside the sample count as exactly 0, even if NaN."""
    return folded(tl.where(inside, terms, 0.0), S, E)


@triton.jit
def mean_of(total, weight, b, live, size):
    """weight * (total / size) in float64; 0 for an empty sample."""
    count = (b * 0 + size).to(tl.float64)  # a tensor even if size is a constant
    mean = total.to(tl.float64) / tl.where(count > 0.0, count, 1.0)
    if weight is not None:
        mean = tl.load(weight + b, mask=live, other=0.0).to(tl.float64) * mean
    return mean


@triton.jit
def store_sum(out, workspace, weight, total, b, chunk, live, size, MEAN: tl.constexpr):
    """Stores the sums of a tile's rows: results if a sample is one chunk, else partial sums."""
    if workspace is None:
        if MEAN:
            total = mean_of(total, weight, b, live, size)
        tl.store(out + b, total.to(out.dtype.element_ty), mask=live)
    else:
        chunks = (size - 1) // CHUNK + 1
        tl.store(workspace + b * chunks + chunk, total, mask=live)


@triton.jit(
    do_not_specialize=["batch", "table_rows"],
    do_not_specialize_on_alignment=["out", "workspace", "weight", "table", "row"],
)
def sum_chunks_kernel(
    out,
    workspace,
    weight,
    table,
    row,
    batch,
    size,
    table_rows,
    S: tl.constexpr,
    FLIGHT: tl.constexpr,
    MEAN: tl.constexpr,
    SCORED: tl.constexpr,
):
    """Adds each sample's partial sums in order, in float64.

    FLIGHT of them are loaded at once, so that only the additions wait for each other. With a table
    and the samples' rows in it, the sums are of a log-probability's terms.
    """
    b = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)
    live = b < batch
    chunks = (size - 1) // CHUNK + 1
    total = tl.zeros([S], tl.float64)
    at = workspace + b * chunks
    begin = tl.full([], 0, tl.int32)
    while begin < chunks:
        left = chunks - begin
        parts = ()
        for i in tl.static_range(FLIGHT):
            part = tl.load(at + i, mask=live & (i < left), other=0.0)
            parts = parts + (part,)  # type: ignore[assignment]
        for i in tl.static_range(FLIGHT):
            total += parts[i].to(tl.float64)  # a missing one adds +0, which changes no bit
        begin += FLIGHT
        at += FLIGHT
    COMPUTE: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    if table is not None:
        total = log_prob_of(total, table, row, b, live, table_rows, size, COMPUTE, MEAN, SCORED)
    elif MEAN:
        total = mean_of(total, weight, b, live, size)
    tl.store(out + b, total.to(COMPUTE), mask=live)
