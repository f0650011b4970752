"""The prepasses: values of a whole sample that a row needs first, kernels/README.md section 4.

    terms     = what a kind of guidance changes u by, by v·v, v·p and p·p
                                            (Fan et al. 2025; Sadat et al. 2024)
    rescale   = phi * (std(c) / std(out)) + (1 - phi)       (Lin et al. 2024, eq. 15-16)
    threshold = the clip_ratio-quantile of |x0|, clamped to [1, bound]
                                                            (Saharia et al. 2022, section 2.3)

This file is over 400 lines because the kernels of one part and of several share their functions.

A program takes a part of `span` elements of a sample, in blocks of E elements; a short sample is
one part. The host chooses the span by the size of a sample, so the bits don't depend on the batch.

The standard deviations take two passes over a part (the mean, then centred squares) in float64; the
moments of several parts are combined by a second kernel. The quantile is a radix select: magnitudes
have the order of their bit patterns (NaN last). Each pass counts the values of the next eight bits
among the keys with the prefix found so far; after the last pass all bits are found. One program
makes all passes over a sample of one part. Over several parts each pass is a kernel: it writes the
counts of its parts, and the next one begins by adding them, so nothing has to be zero before.
Samples whose row needs neither are skipped.

This file is over 400 lines because the kernels of one part and of several share their functions.
"""

import triton
import triton.language as tl

from .combine import X0_OUT, X0_X, entry, nonzero, used
from .reverse_step import (
    CLIP_BOUND,
    CLIP_MODE,
    COLUMNS,
    GUIDANCE_KIND,
    GUIDANCE_MOMENTUM,
    GUIDANCE_RESCALE,
    GUIDANCE_X,
    guidance_strength,
    guided_output,
    predicted_x0,
    reference_of,
    remembered,
    terms_of,
)
from .sums import folded
from .tiling import at

CLIP_RATIO = tl.constexpr(10)
GUIDANCE_PARALLEL, GUIDANCE_BOUND = tl.constexpr(58), tl.constexpr(60)


@triton.jit
def sample_row(row, table, table_rows):
    """This program's sample and its row, [1, 1] each, and whether the row is in the table."""
    b = tl.full([1, 1], 0, tl.int64) + tl.program_id(0)
    index = tl.load(row + b)
    valid = (index >= 0) & (index < table_rows)
    return b, table + tl.where(valid, index, 0) * COLUMNS, valid


@triton.jit
def halves(model_output, b, batch, size, first, e, WIDTH: tl.constexpr, COMPUTE: tl.constexpr):
    """The conditional and the unconditional output of a block, and the mask of its elements."""
    inside = e < size - first
    c = tl.load(at(model_output, b, size, first, e, WIDTH), mask=inside, other=0.0)
    u = tl.load(at(model_output, b + batch, size, first, e, WIDTH), mask=inside, other=0.0)
    return c.to(COMPUTE), u.to(COMPUTE), inside


@triton.jit
def both_outputs(
    x_t,
    slots,
    model_output,
    terms,
    mixed,
    g,
    b,
    batch,
    size,
    first,
    e,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The conditional and the guided output of a block, and the mask of its elements."""
    c, u, inside = halves(model_output, b, batch, size, first, e, WIDTH, g.dtype)
    if terms is not None:
        u = reference_of(u, c, x_t, slots, mixed, b, batch, size, first, e, inside, USES, g.dtype)
    return c.to(tl.float64), tl.where(g == 0.0, u, u + g * (c - u)).to(tl.float64), inside


@triton.jit
def part(size, span):
    """The first element of this program's part, and the one after its last."""
    begin = tl.program_id(1).to(tl.int64) * span
    return begin, tl.minimum(begin + span, size)


@triton.jit
def guidance_terms(kind, rows, g, vv, vp, pp):
    """What c, u, slot 4 and x are multiplied by, in float64, by the sums over a sample."""
    bound = tl.load(rows + GUIDANCE_BOUND)
    norm = tl.sqrt(vv)
    long = (bound > 0.0) & (norm > bound)
    k = tl.where(long, bound / tl.where(long, norm, 1.0), 1.0)
    along = 1.0 - tl.load(rows + GUIDANCE_PARALLEL)
    projects = (along != 0.0) & (pp != 0.0)
    e = tl.where(projects, k * (along * (vp / tl.where(projects, pp, 1.0))), 0.0)
    on_m = k * tl.load(rows + GUIDANCE_MOMENTUM)
    on_x = e * tl.load(rows + GUIDANCE_X)
    star, from_cond = kind == 1.0, (kind == 2.0) | (kind == 4.0)
    rest = tl.where(g == 1.0, 1.0, 1.0 - g)
    of_cond = tl.where(from_cond, (1.0 - k) + e, g * ((k - e) - 1.0) / rest)
    of_uncond = tl.where(from_cond, k, (1.0 - g * k) / rest)
    of_memory = tl.where(from_cond, 0.0 - on_m, g * on_m / rest)
    of_state = tl.where(from_cond, on_x, 0.0 - g * on_x / rest)
    return (
        tl.where(star, 0.0, of_cond),
        tl.where(star, vp / (pp + 1e-8), of_uncond),
        tl.where(star, 0.0, of_memory),
        tl.where(star, 0.0, of_state),
    )


@triton.jit
def store_terms(terms, kind, rows, g, vv, vp, pp, b, batch, changed, COMPUTE: tl.constexpr):
    values = guidance_terms(kind, rows, g.to(tl.float64), vv, vp, pp)
    for i in tl.static_range(4):
        tl.store(terms + b + i * batch, values[i].to(COMPUTE), mask=changed)


@triton.jit(
    do_not_specialize=["batch", "table_rows"],
    do_not_specialize_on_alignment=["terms", "partials", "guidance", "table", "row"],
)
def reverse_step_guidance_kernel(
    terms,
    partials,
    x_t,
    slots,
    model_output,
    guidance,
    table,
    row,
    batch,
    size,
    span,
    table_rows,
    E: tl.constexpr,
    FAST: tl.constexpr,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The terms of a sample of one part, or the sums of a part for `partials`.

    Those are float64 [batch, parts, 4]: v·v, v·p and p·p, and one that is not used.
    """
    COMPUTE: tl.constexpr = terms.dtype.element_ty
    b, rows, valid = sample_row(row, table, table_rows)
    e = tl.arange(0, E)[None, :]
    kind = entry(rows, GUIDANCE_KIND, valid, COMPUTE)
    g = guidance_strength(guidance, rows, b, valid, valid, COMPUTE)
    changed = valid & (kind != 0.0) & (g != 1.0)
    if tl.max(changed.to(tl.int32)) != 0:
        begin, end = part(size, span)
        star = kind == 1.0
        momentum = tl.load(rows + GUIDANCE_MOMENTUM)
        on_x = tl.load(rows + GUIDANCE_X)
        vv = tl.zeros([1, E], tl.float64)
        vp = tl.zeros([1, E], tl.float64)
        pp = tl.zeros([1, E], tl.float64)
        first = begin
        while first < end:
            c, u, inside = halves(model_output, b, batch, size, first, e, WIDTH, COMPUTE)
            c = c.to(tl.float64)
            u = u.to(tl.float64)
            v = c - u
            p = c
            if used(USES, GUIDANCE_MOMENTUM):
                wanted = inside & (momentum != 0.0)
                m = remembered(slots, b, batch, size, first, e, wanted, tl.float64)
                v = tl.where(momentum != 0.0, v + momentum * m, v)
            if used(USES, GUIDANCE_X):
                wanted = inside & (on_x != 0.0)
                x = tl.load(at(x_t, b, size, first, e), mask=wanted, other=0.0).to(COMPUTE)
                p = tl.where(on_x != 0.0, c + on_x * x.to(tl.float64), c)
            v, p = tl.where(star, c, v), tl.where(star, u, p)
            vv += tl.where(inside, v * v, 0.0)
            vp += tl.where(inside, v * p, 0.0)
            pp += tl.where(inside, p * p, 0.0)
            first += E
        vv, vp, pp = folded(vv, 1, E), folded(vp, 1, E), folded(pp, 1, E)
        if partials is None:
            store_terms(terms, kind, rows, g, vv, vp, pp, b, batch, changed, COMPUTE)
        else:
            to = partials + (b * tl.num_programs(1) + tl.program_id(1)) * 4
            tl.store(to, vv)
            tl.store(to + 1, vp)
            tl.store(to + 2, pp)


@triton.jit(
    do_not_specialize=["batch", "table_rows", "parts"],
    do_not_specialize_on_alignment=["terms", "partials", "guidance", "table", "row"],
)
def reverse_step_guidance_combine_kernel(
    terms,
    partials,
    guidance,
    table,
    row,
    batch,
    table_rows,
    parts,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    """The terms of samples of at most E parts, by the parts' sums."""
    COMPUTE: tl.constexpr = terms.dtype.element_ty
    b, rows, valid = sample_row(row, table, table_rows)
    kind = entry(rows, GUIDANCE_KIND, valid, COMPUTE)
    g = guidance_strength(guidance, rows, b, valid, valid, COMPUTE)
    changed = valid & (kind != 0.0) & (g != 1.0)
    k = tl.arange(0, E)[None, :]
    sums = partials + (b * parts + k) * 4
    there = changed & (k < parts)
    vv = folded(tl.load(sums, mask=there, other=0.0), 1, E)
    vp = folded(tl.load(sums + 1, mask=there, other=0.0), 1, E)
    pp = folded(tl.load(sums + 2, mask=there, other=0.0), 1, E)
    store_terms(terms, kind, rows, g, vv, vp, pp, b, batch, changed, COMPUTE)


@triton.jit
def rescale_factor(phi, c_squares, out_squares, count):
    """phi (std(c) / std(out)) + 1 - phi, by sums of squared distances to the mean."""
    c_std = tl.sqrt(c_squares / (count - 1.0))
    out_std = tl.sqrt(out_squares / (count - 1.0))
    return phi * (c_std / out_std) + (1.0 - phi)


@triton.jit(
    do_not_specialize=["batch", "table_rows"],
    do_not_specialize_on_alignment=["rescale", "partials", "terms", "guidance", "table", "row"],
)
def reverse_step_rescale_kernel(
    rescale,
    partials,
    terms,
    x_t,
    slots,
    model_output,
    guidance,
    table,
    row,
    batch,
    size,
    span,
    table_rows,
    E: tl.constexpr,
    FAST: tl.constexpr,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The factor of a sample of one part, or the moments of a part for `partials`.

    Those are float64 [batch, parts, 4]: mean and squares of c, then of out.
    """
    COMPUTE: tl.constexpr = rescale.dtype.element_ty
    b, rows, valid = sample_row(row, table, table_rows)
    e = tl.arange(0, E)[None, :]
    phi = tl.load(rows + GUIDANCE_RESCALE, mask=valid, other=0.0)
    g = guidance_strength(guidance, rows, b, valid, valid, COMPUTE)
    if tl.max(((phi != 0.0) & (g != 1.0)).to(tl.int32)) != 0:
        begin, end = part(size, span)
        mixed = 0.0
        if terms is not None:
            mixed = terms_of(terms, rows, b, batch, valid, g, COMPUTE)
        count = (b * 0 + (end - begin)).to(tl.float64)
        c_total = tl.zeros([1, E], tl.float64)
        out_total = tl.zeros([1, E], tl.float64)
        first = begin
        while first < end:
            c, out, inside = both_outputs(
                x_t, slots, model_output, terms, mixed, g, b, batch, size, first, e, USES, WIDTH
            )
            c_total += tl.where(inside, c, 0.0)
            out_total += tl.where(inside, out, 0.0)
            first += E
        c_mean, out_mean = folded(c_total, 1, E) / count, folded(out_total, 1, E) / count
        c_squares = tl.zeros([1, E], tl.float64)
        out_squares = tl.zeros([1, E], tl.float64)
        first = begin
        while first < end:
            c, out, inside = both_outputs(
                x_t, slots, model_output, terms, mixed, g, b, batch, size, first, e, USES, WIDTH
            )
            c_squares += tl.where(inside, (c - c_mean) * (c - c_mean), 0.0)
            out_squares += tl.where(inside, (out - out_mean) * (out - out_mean), 0.0)
            first += E
        c_squares, out_squares = folded(c_squares, 1, E), folded(out_squares, 1, E)
        if partials is None:
            factor = rescale_factor(phi, c_squares, out_squares, count)
            tl.store(rescale + b, factor.to(COMPUTE))
        else:
            to = partials + (b * tl.num_programs(1) + tl.program_id(1)) * 4
            tl.store(to, c_mean)
            tl.store(to + 1, c_squares)
            tl.store(to + 2, out_mean)
            tl.store(to + 3, out_squares)


@triton.jit
def combined_squares(moments, length, there, count, P: tl.constexpr):
    """Squared distances to the mean of a whole, by the moments of parts of these lengths [1, P]."""
    mean = tl.load(moments, mask=there, other=0.0)
    squares = tl.load(moments + 1, mask=there, other=0.0)
    apart = mean - tl.sum(tl.where(tl.arange(0, P)[None, :] == 0, mean, 0.0))
    weighted = length * apart
    total = folded(tl.where(there, weighted, 0.0), 1, P)
    return folded(tl.where(there, squares + weighted * apart, 0.0), 1, P) - (total / count) * total


@triton.jit(
    do_not_specialize=["table_rows", "parts"],
    do_not_specialize_on_alignment=["rescale", "partials", "guidance", "table", "row"],
)
def reverse_step_rescale_combine_kernel(
    rescale,
    partials,
    guidance,
    table,
    row,
    size,
    span,
    table_rows,
    parts,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    """The factors of samples of at most E parts, by the parts' moments."""
    COMPUTE: tl.constexpr = rescale.dtype.element_ty
    b, rows, valid = sample_row(row, table, table_rows)
    phi = tl.load(rows + GUIDANCE_RESCALE, mask=valid, other=0.0)
    g = guidance_strength(guidance, rows, b, valid, valid, COMPUTE)
    needed = (phi != 0.0) & (g != 1.0)
    k = tl.arange(0, E)[None, :]
    there = needed & (k < parts)
    length = tl.minimum(size - k.to(tl.int64) * span, span).to(tl.float64)
    count = (b * 0 + size).to(tl.float64)
    moments = partials + (b * parts + k) * 4
    c_squares = combined_squares(moments, length, there, count, E)
    out_squares = combined_squares(moments + 2, length, there, count, E)
    factor = rescale_factor(phi, c_squares, out_squares, count)
    tl.store(rescale + b, factor.to(COMPUTE), mask=needed)


@triton.jit
def magnitude_bits(
    x_t,
    slots,
    model_output,
    guidance,
    rescale,
    terms,
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
            x_t,
            slots,
            model_output,
            guidance,
            rescale,
            terms,
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


@triton.jit
def position_of(rows, size):
    """Where the quantile is among the sorted values, in float64, and the rank below it."""
    position = tl.sum(tl.load(rows + CLIP_RATIO)) * (size - 1)
    return position, position.to(tl.int64)


@triton.jit
def digit_counts(
    x_t,
    slots,
    model_output,
    guidance,
    rescale,
    terms,
    gradient,
    rows,
    b,
    batch,
    size,
    first,
    end,
    valid,
    prefix,
    larger,
    shift,
    E: tl.constexpr,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """[256]: how often each digit follows the prefix, 8 bits above `shift`.

    `larger` [E] becomes the smallest keys with a larger prefix, at the last digit (a shift of 0).
    """
    e = tl.arange(0, E)[None, :]
    counts = tl.zeros([256], tl.int32)
    while first < end:
        key, inside = magnitude_bits(
            x_t,
            slots,
            model_output,
            guidance,
            rescale,
            terms,
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
        digit = key >> shift
        start = digit >> 8
        if shift == 0:
            larger = tl.where(inside & (start > prefix) & (key < larger), key, larger)
        inside &= start == prefix
        counts += tl.histogram((digit & 255).to(tl.int32), 256, mask=inside)
        first += E
    return counts, larger


@triton.jit
def digit_of_rank(counts, rank):
    """The digit of the key of this rank, and its rank among the keys with the digit."""
    bins = tl.arange(0, 256)
    digit = tl.sum((tl.cumsum(counts, 0) <= rank).to(tl.int32))
    return digit, rank - tl.sum(tl.where(bins < digit, counts, 0))


@triton.jit
def store_threshold(
    threshold, rows, b, valid, size, prefix, rank, digit, counts, least, COMPUTE: tl.constexpr
):
    """Interpolates between the key found, `prefix`, and the next one, and stores the threshold."""
    position, below = position_of(rows, size)
    bins = tl.arange(0, 256)
    # the next value in order: an equal one, the next of the same 256, or the smallest after those
    following = tl.min(tl.where((bins > digit) & (counts > 0), bins, 256))
    above = tl.where(following < 256, (prefix - digit) | following, least)
    again = rank + 1 < tl.sum(tl.where(bins == digit, counts, 0))
    above = tl.where(again | (below + 1 >= size), prefix, above)

    low = prefix.to(COMPUTE, bitcast=True)
    high = above.to(COMPUTE, bitcast=True)
    s = low + (position - below.to(tl.float64)).to(COMPUTE) * (high - low)
    bound = entry(rows, CLIP_BOUND, valid, COMPUTE)
    s = tl.where(s > bound, bound, s)
    tl.store(threshold + b, tl.where(s < 1.0, 1.0, s))


@triton.jit(
    do_not_specialize=["batch", "table_rows"],
    do_not_specialize_on_alignment=["threshold", "rescale", "terms", "guidance", "table", "row"],
)
def reverse_step_threshold_kernel(
    threshold,
    rescale,
    terms,
    x_t,
    slots,
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
    """The thresholds of samples of one part."""
    COMPUTE: tl.constexpr = threshold.dtype.element_ty
    KEY: tl.constexpr = tl.int64 if COMPUTE == tl.float64 else tl.int32
    DIGITS: tl.constexpr = KEY.primitive_bitwidth // 8
    LARGEST: tl.constexpr = (1 << (8 * DIGITS - 1)) - 1
    b, rows, valid = sample_row(row, table, table_rows)
    if tl.max((entry(rows, CLIP_MODE, valid, COMPUTE) == 2.0).to(tl.int32)) != 0:
        _, rank = position_of(rows, size)
        prefix = tl.full([], 0, KEY)
        digit = 0
        counts = tl.zeros([256], tl.int32)
        larger = tl.full([E], LARGEST, KEY)
        for i in tl.static_range(DIGITS):
            counts, larger = digit_counts(
                x_t,
                slots,
                model_output,
                guidance,
                rescale,
                terms,
                gradient,
                rows,
                b,
                batch,
                size,
                tl.full([], 0, tl.int64),
                size,
                valid,
                prefix,
                larger,
                8 * (DIGITS - 1 - i),
                E,
                USES,
                WIDTH,
                COMPUTE,
            )
            digit, rank = digit_of_rank(counts, rank)
            prefix = (prefix << 8) | digit
        least = tl.min(larger)
        store_threshold(
            threshold, rows, b, valid, size, prefix, rank, digit, counts, least, COMPUTE
        )


@triton.jit
def after_digit(counts, found, b, batch, parts, index, KEY: tl.constexpr):
    """What digit `index` >= 0 leaves: the prefix with it, the rank, the digit and all counts.

    counts: int32 [2, batch, parts, 256] and found: int64 [2, batch, 2] hold the last two digits'.
    """
    bins = tl.arange(0, 256)[None, :]
    several = tl.arange(0, 8)[:, None]
    side = (index % 2).to(tl.int64) * batch + b
    total = tl.zeros([256], tl.int32)
    k = tl.full([], 0, tl.int32)
    while k < parts:
        at = counts + ((side * parts + k) + several) * 256 + bins
        total += tl.sum(tl.load(at, mask=k + several < parts, other=0), 0)
        k += 8
    prefix = tl.sum(tl.load(found + side * 2))
    rank = tl.sum(tl.load(found + side * 2 + 1))
    digit, rank = digit_of_rank(total, rank)
    return (prefix.to(KEY) << 8) | digit, rank, digit, total


@triton.jit(
    do_not_specialize=["batch", "table_rows", "index"],
    do_not_specialize_on_alignment=[
        "counts",
        "found",
        "larger",
        "rescale",
        "terms",
        "guidance",
        "table",
        "row",
    ],
)
def reverse_step_threshold_count_kernel(
    counts,
    found,
    larger,
    rescale,
    terms,
    x_t,
    slots,
    model_output,
    guidance,
    gradient,
    table,
    row,
    batch,
    size,
    span,
    table_rows,
    index,
    E: tl.constexpr,
    FAST: tl.constexpr,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Counts digit `index` of the keys in a part; see `after_digit`.

    larger [batch, parts] receives the smallest key with a larger prefix, at the last digit.
    """
    KEY: tl.constexpr = larger.dtype.element_ty
    COMPUTE: tl.constexpr = tl.float64 if KEY == tl.int64 else tl.float32
    DIGITS: tl.constexpr = KEY.primitive_bitwidth // 8
    LARGEST: tl.constexpr = (1 << (8 * DIGITS - 1)) - 1
    b, rows, valid = sample_row(row, table, table_rows)
    if tl.max((entry(rows, CLIP_MODE, valid, COMPUTE) == 2.0).to(tl.int32)) != 0:
        parts = tl.num_programs(1)
        _, rank = position_of(rows, size)
        prefix = tl.full([], 0, KEY)
        if index > 0:
            before = after_digit(counts, found, b, batch, parts, index - 1, KEY)
            prefix = before[0]
            rank = before[1]
        side = (index % 2).to(tl.int64) * batch + b
        begin, end = part(size, span)
        if begin == 0:
            tl.store(found + side * 2, prefix.to(tl.int64))
            tl.store(found + side * 2 + 1, rank)
        new, least = digit_counts(
            x_t,
            slots,
            model_output,
            guidance,
            rescale,
            terms,
            gradient,
            rows,
            b,
            batch,
            size,
            begin,
            end,
            valid,
            prefix,
            tl.full([E], LARGEST, KEY),
            8 * (DIGITS - 1 - index),
            E,
            USES,
            WIDTH,
            COMPUTE,
        )
        at = side * parts + tl.program_id(1)
        tl.store(counts + at * 256 + tl.arange(0, 256)[None, :], new[None, :])
        tl.store(larger + b * parts + tl.program_id(1), tl.min(least))


@triton.jit(
    do_not_specialize=["batch", "table_rows", "parts"],
    do_not_specialize_on_alignment=["threshold", "counts", "found", "larger", "table", "row"],
)
def reverse_step_threshold_finish_kernel(
    threshold,
    counts,
    found,
    larger,
    table,
    row,
    batch,
    size,
    table_rows,
    parts,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    """The thresholds of samples of at most E parts, after the last digit."""
    COMPUTE: tl.constexpr = threshold.dtype.element_ty
    KEY: tl.constexpr = larger.dtype.element_ty
    DIGITS: tl.constexpr = KEY.primitive_bitwidth // 8
    LARGEST: tl.constexpr = (1 << (8 * DIGITS - 1)) - 1
    b, rows, valid = sample_row(row, table, table_rows)
    if tl.max((entry(rows, CLIP_MODE, valid, COMPUTE) == 2.0).to(tl.int32)) != 0:
        last = tl.full([], DIGITS - 1, tl.int32)
        prefix, rank, digit, total = after_digit(counts, found, b, batch, parts, last, KEY)
        k = tl.arange(0, E)[None, :]
        least = tl.min(tl.load(larger + b * parts + k, mask=k < parts, other=LARGEST))
        store_threshold(threshold, rows, b, valid, size, prefix, rank, digit, total, least, COMPUTE)
