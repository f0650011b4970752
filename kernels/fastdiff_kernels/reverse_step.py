"""reverse_step: one row of a plan for every sample, kernels/README.md section 4, in a single pass
over memory.

    out  = u + gamma * (c - u)  (+ out_grad * gradient)
    x0   = clip(x0_x * x + x0_out * out)
    next x and new slots = combinations over (x, x0, out, s1, s2, s3, s4, z)

USES (the columns that the plan uses; the launcher removes the columns of missing operands) and the
arguments that are None determine the compiled variant. A row outside the table is never used as an
address: that sample becomes NaN and the error word is set.

This file is over 400 lines because one kernel executes every row, so that a step reads and writes
memory once.
"""

import triton
import triton.language as tl

from .combine import (
    FIRST,
    OUT,
    S1,
    X0,
    X0_OUT,
    X0_X,
    X,
    Z,
    coefficients,
    combination,
    entries,
    entry,
    operand_used,
    output_used,
    reads,
    set_where,
    term,
    used,
    writes,
)
from .elementary import divided, exponential
from .log_prob import log_prob_of, log_prob_term
from .noise import normals, stream_identity
from .sums import CHUNK, row_sum
from .tiling import at, samples, share, tile

COLUMNS = tl.constexpr(62)
TIME, INPUT_SCALE, GUIDANCE_WEIGHT = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
GUIDANCE_RESCALE, OUT_GRAD = tl.constexpr(4), tl.constexpr(5)
CLIP_MODE, CLIP_BOUND, NOISE_INDEX, NOISE_MODE = (
    tl.constexpr(8),
    tl.constexpr(9),
    tl.constexpr(11),
    tl.constexpr(12),
)
LOGVAR_LO, LOGVAR_HI, NEXT = tl.constexpr(13), tl.constexpr(14), tl.constexpr(15)
OUT_UNCOND = tl.constexpr(56)
GUIDANCE_KIND, GUIDANCE_X, GUIDANCE_MOMENTUM = (
    tl.constexpr(57),
    tl.constexpr(59),
    tl.constexpr(61),
)


@triton.jit
def guidance_strength(guidance, rows, b, live, valid, COMPUTE: tl.constexpr):
    """gamma, or 1 + w (gamma - 1) with the row's weight w."""
    gamma = tl.load(guidance + b, mask=live, other=1.0).to(COMPUTE)
    weight = entry(rows, GUIDANCE_WEIGHT, valid, COMPUTE)
    return tl.where(weight == 1.0, gamma, 1.0 + weight * (gamma - 1.0))


@triton.jit
def terms_of(terms, rows, b, batch, valid, g, COMPUTE: tl.constexpr):
    """Where a kind of guidance changes the unconditional output, and its four terms, [S, 1] each.

    (kernels/README.md section 4.1)
    """
    changed = valid & (entry(rows, GUIDANCE_KIND, valid, COMPUTE) != 0.0) & (g != 1.0)
    of_cond = tl.load(terms + b, mask=changed, other=0.0)
    of_uncond = tl.load(terms + b + batch, mask=changed, other=0.0)
    of_memory = tl.load(terms + b + 2 * batch, mask=changed, other=0.0)
    of_state = tl.load(terms + b + 3 * batch, mask=changed, other=0.0)
    return changed, of_cond, of_uncond, of_memory, of_state


@triton.jit
def remembered(slots, b, batch, size, first, e, mask, COMPUTE: tl.constexpr):
    """Slot 4, where an earlier row with momentum left its difference."""
    at_slot = at(slots, b + 3 * batch.to(tl.int64), size, first, e)
    return tl.load(at_slot, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def reference_of(
    u,
    c,
    x_t,
    slots,
    mixed,
    b,
    batch,
    size,
    first,
    e,
    inside,
    USES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What guidance takes as the unconditional output: u, or a combination of c, u, slot 4 and x.

    mixed: the sample's terms_of.
    """
    changed, of_cond, of_uncond, of_memory, of_state = mixed
    total = tl.where(of_cond != 0.0, of_cond * c + 0.0, 0.0)
    total = tl.where(of_uncond != 0.0, total + of_uncond * u, total)
    if used(USES, GUIDANCE_MOMENTUM):
        wanted = inside & (of_memory != 0.0)
        m = remembered(slots, b, batch, size, first, e, wanted, COMPUTE)
        total = tl.where(of_memory != 0.0, total + of_memory * m, total)
    if used(USES, GUIDANCE_X):
        wanted = inside & (of_state != 0.0)
        x = tl.load(at(x_t, b, size, first, e), mask=wanted, other=0.0).to(COMPUTE)
        total = tl.where(of_state != 0.0, total + of_state * x, total)
    return tl.where(changed, total, u)


@triton.jit
def guidance_of(
    guidance,
    rescale,
    terms,
    rows,
    b,
    batch,
    live,
    valid,
    USES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What a sample's guidance needs, [S, 1] each: gamma, the factor of the rescaled guidance and
    where it applies, the coefficient of the guidance gradient, terms_of; 0 for what the launch has
    not.
    """
    g, factor, rescaled, mixed = 0.0, 0.0, 0.0, 0.0
    if guidance is not None:
        g = guidance_strength(guidance, rows, b, live, valid, COMPUTE)
        if terms is not None:
            mixed = terms_of(terms, rows, b, batch, valid, g, COMPUTE)
        if rescale is not None:
            rescaled = (entry(rows, GUIDANCE_RESCALE, valid, COMPUTE) != 0.0) & (g != 1.0)
            factor = tl.load(rescale + b, mask=live & rescaled, other=1.0)
    return g, factor, rescaled, entries(rows, OUT_GRAD, 1, valid, USES, COMPUTE)[0], mixed


@triton.jit
def output_of(
    x_t,
    slots,
    model_output,
    guidance,
    rescale,
    terms,
    gradient,
    strength,
    b,
    batch,
    size,
    first,
    e,
    wanted,
    inside,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """u + gamma (c - u), where 1 reads c only and 0 reads u only; without guidance c.

    It is rescaled, and the guidance gradient is added, for rows that do so. strength: the sample's
    guidance_of. With learned variance (WIDTH 2) a row of the model's output holds the prediction,
    then as many elements for the variance.
    """
    g, factor, rescaled, of_gradient, mixed = strength
    ours = inside & wanted
    if guidance is None:
        out = tl.load(at(model_output, b, size, first, e, WIDTH), mask=ours, other=0.0).to(COMPUTE)
    else:
        reads_c = ours & (g != 0.0)
        if terms is not None:
            reads_c = ours  # also at strength 0
        c = tl.load(at(model_output, b, size, first, e, WIDTH), mask=reads_c, other=0.0).to(COMPUTE)
        u = tl.load(
            at(model_output, b + batch, size, first, e, WIDTH), mask=ours & (g != 1.0), other=0.0
        ).to(COMPUTE)
        if terms is not None:
            u = reference_of(u, c, x_t, slots, mixed, b, batch, size, first, e, ours, USES, COMPUTE)
        out = tl.where(g == 1.0, c, tl.where(g == 0.0, u, u + g * (c - u)))
        if rescale is not None:
            out = tl.where(rescaled, factor * out, out)
    if used(USES, OUT_GRAD):
        by = tl.load(at(gradient, b, size, first, e), mask=ours & (of_gradient != 0.0), other=0.0)
        out = tl.where(of_gradient != 0.0, out + of_gradient * by.to(COMPUTE), out)
    return out


@triton.jit
def guided_output(
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
    live,
    valid,
    wanted,
    inside,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The output of a block of which the sample's guidance is not known yet."""
    strength = guidance_of(guidance, rescale, terms, rows, b, batch, live, valid, USES, COMPUTE)
    return output_of(
        x_t,
        slots,
        model_output,
        guidance,
        rescale,
        terms,
        gradient,
        strength,
        b,
        batch,
        size,
        first,
        e,
        wanted,
        inside,
        USES,
        WIDTH,
        COMPUTE,
    )


@triton.jit
def predicted_x0(zero, rows, x, out, valid, USES: tl.constexpr, COMPUTE: tl.constexpr):
    """x0 before the clip, of a block whose coefficients are not known yet."""
    of_x, of_out = entries(rows, X0_X, 2, valid, USES, COMPUTE)
    return term(term(zero, of_x, x, X0_X, USES), of_out, out, X0_OUT, USES)


@triton.jit
def old_slot(
    zero,
    slots,
    index: tl.constexpr,
    outputs,
    b,
    batch,
    size,
    first,
    e,
    valid,
    inside,
    USES: tl.constexpr,
    COPY: tl.constexpr,
):
    """Slot `index` (0 to 3) where the row reads it or, with COPY, where the row keeps it."""
    value = zero
    if operand_used(USES, S1 + index) or COPY > index:
        wanted = reads(S1 + index, outputs, valid, USES)
        if COPY > index:
            wanted = wanted | (writes(1 + index, outputs, valid, USES) == 0)
        value = tl.load(
            at(slots, b + index * batch.to(tl.int64), size, first, e),
            mask=inside & wanted,
            other=0.0,
        )
    return value


@triton.jit
def new_slot(
    zero,
    index: tl.constexpr,
    outputs,
    operands,
    valid,
    USES: tl.constexpr,
    COPY: tl.constexpr,
):
    """The slot's new value and which samples [S, 1] store it.

    A slot that a row does not define keeps its value.
    """
    value = zero
    stored = valid
    if output_used(USES, 1 + index) or COPY > index:
        stored = writes(1 + index, outputs, valid, USES)
        value = combination(zero, 1 + index, outputs, operands, USES)
        if COPY > index:
            value = tl.where(stored, value, operands[S1 + index])
            stored = valid
    return value, stored


@triton.jit
def store_slot(
    slots_out,
    index: tl.constexpr,
    value,
    stored,
    b,
    batch,
    size,
    first,
    e,
    inside,
    USES: tl.constexpr,
    COPY: tl.constexpr,
):
    if output_used(USES, 1 + index) or COPY > index:
        tl.store(
            at(slots_out, b + index * batch.to(tl.int64), size, first, e),
            value,
            mask=inside & stored,
        )


@triton.jit
def network_time(table, following, known, WHOLE: tl.constexpr):
    """The column t of the next row, NaN without one; if WHOLE, rounded half to even, 0 for NaN.

    A float64 near 1.5 * 2**52 has no digits after the point, so the sum is rounded to an integer.
    """
    t = tl.load(table + following * COLUMNS + TIME, mask=known, other=float("nan"))
    if WHOLE:
        t = tl.where(t == t, (t + 6755399441055744.0) - 6755399441055744.0, 0.0)
    return t


@triton.jit(
    do_not_specialize=["seed_lo", "seed_hi", "stream_index", "batch", "each", "table_rows"],
    do_not_specialize_on_alignment=[
        "table",
        "row",
        "seeds",
        "sample_ids",
        "guidance",
        "rescale",
        "terms",
        "threshold",
        "row_out",
        "time_out",
        "log_prob",
        "partials",
        "errors",
    ],
)
def reverse_step_kernel(
    x_s,
    x_t,
    model_output,
    table,
    row,
    slots,
    noise,
    seeds,
    sample_ids,
    guidance,
    gradient,
    rescale,
    terms,
    threshold,
    slots_out,
    x0_out,
    input_out,
    row_out,
    time_out,
    log_prob,
    partials,
    errors,
    seed_lo,
    seed_hi,
    stream_index,
    batch,
    size,
    each,
    table_rows,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    ERROR: tl.constexpr,
    USES: tl.constexpr,
    WIDTH: tl.constexpr,
    COPY: tl.constexpr,
    COPIES: tl.constexpr,
    TIMES: tl.constexpr,
    KEEPS: tl.constexpr,
    MEAN: tl.constexpr,
    SCORED: tl.constexpr,
):
    """One row of a plan for the samples of a tile.

    USES: column mask. WIDTH: model output elements per state element (1 or 2). COPY: how many slots
    are copied to separate memory. COPIES, TIMES: how many times the network's next input
    and its next time are written. KEEPS: whether rows may leave their difference in slot 4. SCORED:
    x_s is read and only its log-probability is written; USES then has no column of the noise. MEAN:
    it is divided by the elements.
    """
    COMPUTE: tl.constexpr = tl.float64 if x_t.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    index = tl.load(row + b, mask=live, other=0)
    valid = live & (index >= 0) & (index < table_rows)
    rows = table + tl.where(valid, index, 0) * COLUMNS
    if log_prob is not None:
        deviation = entry(rows, FIRST + Z, valid, COMPUTE)
        if SCORED:
            valid = valid & ((deviation != 0.0) | (size == 0))
        deviation = tl.where(deviation != 0.0, tl.abs(deviation.to(tl.float64)), 1.0)
        inverse = (1.0 / deviation).to(COMPUTE)
    tl.store(errors + b * 0, ERROR, mask=live & (valid == 0))

    # the start of every combination; also used for operands that no column reads
    zero = tl.where(valid, 0.0, float("nan")).to(COMPUTE)
    outputs = (
        coefficients(rows, 0, valid, USES, COMPUTE),
        coefficients(rows, 1, valid, USES, COMPUTE),
        coefficients(rows, 2, valid, USES, COMPUTE),
        coefficients(rows, 3, valid, USES, COMPUTE),
        coefficients(rows, 4, valid, USES, COMPUTE),
    )
    from_x, from_out = entries(rows, X0_X, 2, valid, USES, COMPUTE)  # X0_X and X0_OUT
    wants_x = set_where(reads(X, outputs, valid, USES), from_x, X0_X, USES)
    wants_out = set_where(reads(OUT, outputs, valid, USES), from_out, X0_OUT, USES)
    wants_z = reads(Z, outputs, valid, USES)
    wants_v = wants_z
    if SCORED:
        wants_v = valid
    strength = guidance_of(guidance, rescale, terms, rows, b, batch, live, valid, USES, COMPUTE)
    if KEEPS:
        keeps = strength[4][0] & (entry(rows, GUIDANCE_KIND, valid, COMPUTE) >= 4.0)
        momentum = entries(rows, GUIDANCE_MOMENTUM, 1, valid, USES, COMPUTE)[0]
    if used(USES, OUT_UNCOND):
        if guidance is not None:
            renoised = (entry(rows, OUT_UNCOND, valid, COMPUTE) != 0.0) & (strength[0] != 1.0)
            renoised = renoised & reads(OUT, outputs, valid, USES)
    if operand_used(USES, Z):
        if noise is None:
            k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
            step = tl.load(rows + NOISE_INDEX, mask=valid, other=0.0).to(tl.int64)
    learned = valid & False
    if used(USES, NOISE_MODE):
        learned = entry(rows, NOISE_MODE, valid, COMPUTE) == 1.0
        lo = entry(rows, LOGVAR_LO, valid, COMPUTE)
        hi = entry(rows, LOGVAR_HI, valid, COMPUTE)
    if used(USES, CLIP_MODE):
        mode = entry(rows, CLIP_MODE, valid, COMPUTE)
        bound = tl.where(mode == 1.0, entry(rows, CLIP_BOUND, valid, COMPUTE), float("inf"))
        if threshold is not None:
            s = tl.load(threshold + b, mask=live & (mode == 2.0), other=1.0)
            bound = tl.where(mode == 2.0, s, bound)
    if input_out is not None or row_out is not None or time_out is not None:
        following = tl.load(rows + NEXT, mask=valid, other=-1.0).to(tl.int64)
    if input_out is not None or time_out is not None:
        known = valid & (following >= 0) & (following < table_rows)
        tl.store(errors + b * 0, ERROR, mask=live & (known == 0))
    if input_out is not None:
        scale = tl.load(
            table + following * COLUMNS + INPUT_SCALE, mask=known, other=float("nan")
        ).to(COMPUTE)

    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        x = tl.load(at(x_t, b, size, first, e), mask=inside & wants_x, other=0.0).to(COMPUTE)
        s1 = old_slot(zero, slots, 0, outputs, b, batch, size, first, e, valid, inside, USES, COPY)
        s2 = old_slot(zero, slots, 1, outputs, b, batch, size, first, e, valid, inside, USES, COPY)
        s3 = old_slot(zero, slots, 2, outputs, b, batch, size, first, e, valid, inside, USES, COPY)
        s4 = old_slot(zero, slots, 3, outputs, b, batch, size, first, e, valid, inside, USES, COPY)
        out = zero
        if operand_used(USES, OUT) or used(USES, X0_OUT):
            out = output_of(
                x_t,
                slots,
                model_output,
                guidance,
                rescale,
                terms,
                gradient,
                strength,
                b,
                batch,
                size,
                first,
                e,
                wants_out,
                inside,
                USES,
                WIDTH,
                COMPUTE,
            )
        half = zero
        if used(USES, NOISE_MODE):
            v = tl.load(
                at(model_output + size, b, size, first, e, WIDTH),
                mask=inside & wants_v & learned,
                other=0.0,
            )
            half = 0.5 * (lo + (hi - lo) * ((v.to(COMPUTE) + 1.0) * 0.5))
        z = zero
        if operand_used(USES, Z):
            if noise is None:
                z = normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
            else:
                z = tl.load(at(noise, b, size, first, e), mask=inside & wants_z, other=0.0).to(
                    COMPUTE
                )
            if used(USES, NOISE_MODE):
                z = tl.where(learned, z * exponential(half), z)

        x0 = zero
        if operand_used(USES, X0) or x0_out is not None:
            x0 = term(term(zero, from_x, x, X0_X, USES), from_out, out, X0_OUT, USES)
            if used(USES, CLIP_MODE):
                x0 = tl.where(x0 > bound, bound, x0)  # unlike min and max, it keeps NaN
                x0 = tl.where(x0 < -bound, -bound, x0)
                if threshold is not None:
                    x0 = tl.where(mode == 2.0, divided(x0, s), x0)
        if used(USES, OUT_UNCOND):
            if guidance is not None:  # after x0, which is of the guided output
                u = tl.load(
                    at(model_output, b + batch, size, first, e, WIDTH),
                    mask=inside & renoised,
                    other=0.0,
                )
                u = u.to(COMPUTE)
                if terms is not None:
                    ours = inside & renoised
                    c = tl.load(at(model_output, b, size, first, e, WIDTH), mask=ours, other=0.0)
                    u = reference_of(
                        u,
                        c.to(COMPUTE),
                        x_t,
                        slots,
                        strength[4],
                        b,
                        batch,
                        size,
                        first,
                        e,
                        ours,
                        USES,
                        COMPUTE,
                    )
                out = tl.where(renoised, u, out)
        operands = (x, x0, out, s1, s2, s3, s4, z)
        # the noise is the last operand, so x_next rounds as it does in one combination
        mean = combination(zero, 0, outputs, operands, USES, Z)
        x_next = term(mean, outputs[0][Z], z, FIRST + Z, USES)
        if log_prob is not None:
            if SCORED:
                stored = tl.load(at(x_s, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
            else:
                stored = x_next.to(x_s.dtype.element_ty).to(COMPUTE)
            scores = log_prob_term(stored, mean, inverse, half, learned, used(USES, NOISE_MODE))
            total = row_sum(scores, inside, S, E)
            if partials is None:
                value = log_prob_of(
                    total, table, row, b, live, table_rows, size, COMPUTE, MEAN, SCORED
                )
                tl.store(log_prob + b, value.to(COMPUTE), mask=live)
            else:
                tl.store(partials + b * ((size - 1) // CHUNK + 1) + chunk, total, mask=live)
        n1, stored1 = new_slot(zero, 0, outputs, operands, valid, USES, COPY)
        n2, stored2 = new_slot(zero, 1, outputs, operands, valid, USES, COPY)
        n3, stored3 = new_slot(zero, 2, outputs, operands, valid, USES, COPY)
        n4, stored4 = new_slot(zero, 3, outputs, operands, valid, USES, COPY)

        if KEEPS:
            ours = inside & keeps
            c = tl.load(at(model_output, b, size, first, e, WIDTH), mask=ours, other=0.0)
            u = tl.load(at(model_output, b + batch, size, first, e, WIDTH), mask=ours, other=0.0)
            kept = c.to(COMPUTE) - u.to(COMPUTE)
            if used(USES, GUIDANCE_MOMENTUM):
                wanted = ours & (momentum != 0.0)
                m = remembered(slots, b, batch, size, first, e, wanted, COMPUTE)
                kept = tl.where(momentum != 0.0, kept + momentum * m, kept)
            n4 = tl.where(keeps, kept, n4)
            if output_used(USES, 4) or COPY > 3:
                stored4 = stored4 | keeps
            else:
                stored4 = keeps

        # outputs may be the inputs' memory, and another thread may have loaded a value; other
        # chunks are other memory, in this program as in others
        tl.debug_barrier()
        if not SCORED:
            tl.store(at(x_s, b, size, first, e), x_next.to(x_s.dtype.element_ty), mask=inside)
        store_slot(slots_out, 0, n1, stored1, b, batch, size, first, e, inside, USES, COPY)
        store_slot(slots_out, 1, n2, stored2, b, batch, size, first, e, inside, USES, COPY)
        store_slot(slots_out, 2, n3, stored3, b, batch, size, first, e, inside, USES, COPY)
        if KEEPS:
            tl.store(
                at(slots_out, b + 3 * batch.to(tl.int64), size, first, e),
                n4,
                mask=inside & stored4,
            )
        else:
            store_slot(slots_out, 3, n4, stored4, b, batch, size, first, e, inside, USES, COPY)
        if x0_out is not None:
            tl.store(at(x0_out, b, size, first, e), x0.to(x0_out.dtype.element_ty), mask=inside)
        if input_out is not None:
            scaled = (scale * x_next).to(input_out.dtype.element_ty)
            for half in tl.static_range(COPIES):
                tl.store(at(input_out, b + half * batch, size, first, e), scaled, mask=inside)
        chunk += 1
    if row_out is not None:  # in one program per sample
        tl.store(
            row_out + b, tl.where(valid, following, index), mask=live & (tl.program_id(1) == 0)
        )
    if time_out is not None:
        if tl.program_id(1) == 0:  # only that program takes the instructions
            t = network_time(table, following, known, time_out.dtype.element_ty == tl.int64)
            copy = b + tl.arange(0, TIMES)[None, :] * batch
            tl.store(time_out + copy, t.to(time_out.dtype.element_ty), mask=live)
