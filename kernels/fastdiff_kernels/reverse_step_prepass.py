"""The prepasses: values of a whole sample that a row needs first, kernels/README.md section 4.

    rescale   = phi * (std(c) / std(out)) + (1 - phi)       (Lin et al. 2024, eq. 15-16)
    threshold = the clip_ratio-quantile of |x0|, clamped to [1, bound]
                                                            (Saharia et al. 2022, section 2.3)

One program per sample processes it in blocks of E elements. The standard deviations take two passes
(the mean, then centred squares) in float64. The quantile is a radix select: magnitudes have the
order of their bit patterns (NaN last). Each pass counts the values of the next eight bits among the
keys with the prefix found so far; after the last pass all bits are found. Samples whose row needs
neither are skipped.
"""

import triton
import triton.language as tl

from .combine import X0_OUT, X0_X, entry, nonzero, used
from .reverse_step import (
    CLIP_BOUND,
    CLIP_MODE,
    COLUMNS,
    GUIDANCE_RESCALE,
    guidance_strength,
    guided_output,
    predicted_x0,
)
from .sums import folded
from .tiling import at

CLIP_RATIO = tl.constexpr(10)


@triton.jit
def sample_row(row, table, table_rows):
    """This program's sample and its row, [1, 1] each, and whether the row is in the table."""
    b = tl.full([1, 1], 0, tl.int64) + tl.program_id(0)
    index = tl.load(row + b)
    valid = (index >= 0) & (index < table_rows)
    return b, table + tl.where(valid, index, 0) * COLUMNS, valid


@triton.jit
def both_outputs(model_output, g, b, batch, size, first, e, WIDTH: tl.constexpr):
    """The conditional and the guided output of a block, and the mask of its elements."""
    inside = e < size - first
    c = tl.load(at(model_output, b, size * WIDTH, first, e), mask=inside, other=0.0).to(g.dtype)
    u = tl.load(at(model_output, b + batch, size * WIDTH, first, e), mask=inside, other=0.0).to(
        g.dtype
    )
    return c.to(tl.float64), tl.where(g == 0.0, u, u + g * (c - u)).to(tl.float64), inside


@triton.jit(do_not_specialize=["batch", "table_rows"])
def reverse_step_rescale_kernel(
    rescale,
    model_output,
    guidance,
    table,
    row,
    batch,
    size,
    table_rows,
    E: tl.constexpr,
    FAST: tl.constexpr,
    WIDTH: tl.constexpr,
):
    COMPUTE: tl.constexpr = rescale.dtype.element_ty
    b, rows, valid = sample_row(row, table, table_rows)
    e = tl.arange(0, E)[None, :]
    phi = tl.load(rows + GUIDANCE_RESCALE, mask=valid, other=0.0)
    g = guidance_strength(guidance, rows, b, valid, valid, COMPUTE)
    if tl.max(((phi != 0.0) & (g != 1.0)).to(tl.int32)) != 0:
        count = (b * 0 + size).to(tl.float64)
        c_total = tl.zeros([1, E], tl.float64)
        out_total = tl.zeros([1, E], tl.float64)
        first = tl.full([], 0, tl.int64)
        while first < size:
            c, out, inside = both_outputs(model_output, g, b, batch, size, first, e, WIDTH)
            c_total += tl.where(inside, c, 0.0)
            out_total += tl.where(inside, out, 0.0)
            first += E
        c_mean, out_mean = folded(c_total, 1, E) / count, folded(out_total, 1, E) / count
        c_squares = tl.zeros([1, E], tl.float64)
        out_squares = tl.zeros([1, E], tl.float64)
        first = tl.full([], 0, tl.int64)
        while first < size:
            c, out, inside = both_outputs(model_output, g, b, batch, size, first, e, WIDTH)
            c_squares += tl.where(inside, (c - c_mean) * (c - c_mean), 0.0)
            out_squares += tl.where(inside, (out - out_mean) * (out - out_mean), 0.0)
            first += E
        c_std = tl.sqrt(folded(c_squares, 1, E) / (count - 1.0))
        out_std = tl.sqrt(folded(out_squares, 1, E) / (count - 1.0))
        tl.store(rescale + b, (phi * (c_std / out_std) + (1.0 - phi)).to(COMPUTE))


@triton.jit
def magnitude_bits(
    x_t,
    model_output,
    guidance,
    rescale,
    gradient,
    rows,
    b,
    batch,
    size,
    first,
    e,
    valid,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """|x0| before the clip as integers of the same order, and their mask, [E] each."""
    inside = e < size - first
    zero = tl.zeros([1, 1], COMPUTE)
    wants_x = nonzero(valid & False, rows, X0_X, valid, USES, COMPUTE)
    x = tl.load(at(x_t, b, size, first, e), mask=inside & wants_x, other=0.0).to(COMPUTE)
    out = zero
    if used(USES, X0_OUT):
        wants_out = nonzero(valid & False, rows, X0_OUT, valid, USES, COMPUTE)
        out = guided_output(
            model_output,
            guidance,
            rescale,
            gradient,
            rows,
            b,
            batch,
            size,
            first,
            e,
            valid,
            valid,
            wants_out,
            inside,
            USES,
            WIDTH,
            COMPUTE,
        )
    x0 = tl.where(inside, tl.abs(predicted_x0(zero, rows, x, out, valid, USES, COMPUTE)), 0.0)
    KEY: tl.constexpr = tl.int64 if COMPUTE == tl.float64 else tl.int32
    return x0.to(KEY, bitcast=True).reshape(x0.shape[1]), inside.reshape(x0.shape[1])


@triton.jit(do_not_specialize=["batch", "table_rows"])
def reverse_step_threshold_kernel(
    threshold,
    rescale,
    x_t,
    model_output,
    guidance,
    gradient,
    table,
    row,
    batch,
    size,
    table_rows,
    E: tl.constexpr,
    FAST: tl.constexpr,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    COMPUTE: tl.constexpr = threshold.dtype.element_ty
    KEY: tl.constexpr = tl.int64 if COMPUTE == tl.float64 else tl.int32
    DIGITS: tl.constexpr = KEY.primitive_bitwidth // 8
    LARGEST: tl.constexpr = (1 << (8 * DIGITS - 1)) - 1
    b, rows, valid = sample_row(row, table, table_rows)
    e = tl.arange(0, E)[None, :]
    if tl.max((entry(rows, CLIP_MODE, valid, COMPUTE) == 2.0).to(tl.int32)) != 0:
        bins = tl.arange(0, 256)
        position = tl.sum(tl.load(rows + CLIP_RATIO)) * (size - 1)
        below = position.to(tl.int64)
        rank = below  # of the wanted value, among the keys with its prefix
        prefix = tl.full([], 0, KEY)
        bin = 0
        counts = tl.zeros([256], tl.int32)
        larger = tl.full(
            [E], LARGEST, KEY
        )  # the smallest key with a larger prefix than the value's last one
        for digit in tl.static_range(DIGITS):
            shift = 8 * (DIGITS - 1 - digit)
            counts = tl.zeros([256], tl.int32)
            first = tl.full([], 0, tl.int64)
            while first < size:
                key, inside = magnitude_bits(
                    x_t,
                    model_output,
                    guidance,
                    rescale,
                    gradient,
                    rows,
                    b,
                    batch,
                    size,
                    first,
                    e,
                    valid,
                    USES,
                    WIDTH,
                    COMPUTE,
                )
                if digit > 0:
                    start = key >> (shift + 8)
                    if shift == 0:
                        larger = tl.where(inside & (start > prefix) & (key < larger), key, larger)
                    inside &= start == prefix
                counts += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=inside)
                first += E
            bin = tl.sum((tl.cumsum(counts, 0) <= rank).to(tl.int32))
            rank -= tl.sum(tl.where(bins < bin, counts, 0))
            prefix = (prefix << 8) | bin
        # the next value in order: an equal one, the next of the same 256, or the smallest after
        # those
        following = tl.min(tl.where((bins > bin) & (counts > 0), bins, 256))
        least = tl.min(larger)
        above = tl.where(following < 256, (prefix - bin) | following, least)
        again = rank + 1 < tl.sum(tl.where(bins == bin, counts, 0))
        above = tl.where(again | (below + 1 >= size), prefix, above)

        low = prefix.to(COMPUTE, bitcast=True)
        high = above.to(COMPUTE, bitcast=True)
        s = low + (position - below.to(tl.float64)).to(COMPUTE) * (high - low)
        bound = entry(rows, CLIP_BOUND, valid, COMPUTE)
        s = tl.where(s > bound, bound, s)
        tl.store(threshold + b, tl.where(s < 1.0, 1.0, s))
