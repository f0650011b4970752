"""vlb_terms, a term of the variational bound in one pass (Ho et al. 2020, eq. 5; Nichol & Dhariwal
2021), in nats.

    x0' = clip(x0_x * x_t + x0_out * out),   logvar = lo + (hi - lo)*((v + 1)*0.5)
    term = KL between the two posteriors, whose means differ by mean_x0 * (x0 - x0'); at the table's
           `first` rows the discretised Gaussian's -ln p(x0 | x_1)

kernels/README.md section 11. A tile skips the branch that none of its samples takes. A t outside
the table is never used as an address: that sample becomes NaN and the error word is set.
"""

import triton
import triton.language as tl

from .discretized_gaussian_nll import discretized
from .elementary import exponential
from .gaussian_kl import kl_gradient, kl_term
from .sums import row_sum, store_sum
from .tiling import at, samples, share, tile

COLUMNS = tl.constexpr(9)
X0_X, X0_OUT, CLIP_BOUND, MEAN_X0, MEAN_X, LOGVAR_Q, LOGVAR_LO, LOGVAR_HI, FIRST = (
    tl.constexpr(i) for i in range(9)
)


@triton.jit
def known_rows(table, t, times, errors, b, live, ERROR: tl.constexpr):
    """Each sample's row, whether it is in the table, and whether it is a `first` row.

    A row outside the table sets the error word.
    """
    index = tl.load(t + b, mask=live, other=0)
    valid = live & (index >= 0) & (index < times)
    tl.store(errors + b * 0, ERROR, mask=live & (valid == 0))
    rows = table + tl.where(valid, index, 0) * COLUMNS
    return rows, valid, tl.load(rows + FIRST, mask=valid, other=0.0) != 0.0


@triton.jit
def entry(rows, COLUMN: tl.constexpr, valid, COMPUTE: tl.constexpr):
    return tl.load(rows + COLUMN, mask=valid, other=float("nan")).to(COMPUTE)


@triton.jit
def coefficients(rows, valid, COMPUTE: tl.constexpr):
    """The row's columns before `first`, each [S, 1]: read once for all of a sample's chunks."""
    return (
        entry(rows, X0_X, valid, COMPUTE),
        entry(rows, X0_OUT, valid, COMPUTE),
        entry(rows, CLIP_BOUND, valid, COMPUTE),
        entry(rows, MEAN_X0, valid, COMPUTE),
        entry(rows, MEAN_X, valid, COMPUTE),
        entry(rows, LOGVAR_Q, valid, COMPUTE),
        entry(rows, LOGVAR_LO, valid, COMPUTE),
        entry(rows, LOGVAR_HI, valid, COMPUTE),
    )


@triton.jit
def prediction(
    x0,
    x_t,
    model_output,
    row,
    b,
    size,
    first,
    e,
    inside,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """x0, x_t, the predicted x0 before and after the clip, and the log-variance.

    row: the sample's coefficients.
    """
    x = tl.load(at(x0, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
    noisy = tl.load(at(x_t, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
    out = tl.load(at(model_output, b, size, first, e, WIDTH), mask=inside, other=0.0).to(COMPUTE)
    free = row[X0_X] * noisy + row[X0_OUT] * out
    bound = row[CLIP_BOUND]
    held = tl.where(free > bound, bound, free)
    held = tl.where(held < bound * -1.0, bound * -1.0, held)
    logvar = row[LOGVAR_LO]
    if WIDTH == 2:
        v = tl.load(at(model_output + size, b, size, first, e, WIDTH), mask=inside, other=0.0)
        logvar = logvar + (row[LOGVAR_HI] - logvar) * ((v.to(COMPUTE) + 1.0) * 0.5)
    return x, noisy, free, held, logvar


@triton.jit(
    do_not_specialize=["batch", "each", "times"],
    do_not_specialize_on_alignment=["terms", "workspace", "table", "t", "errors"],
)
def vlb_terms_kernel(
    terms,
    workspace,
    x0,
    x_t,
    model_output,
    table,
    t,
    errors,
    batch,
    size,
    each,
    times,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    ERROR: tl.constexpr,
    WIDTH: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if terms.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    rows, valid, last_step = known_rows(table, t, times, errors, b, live, ERROR)
    row = coefficients(rows, valid, COMPUTE)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        x, noisy, free, held, logvar = prediction(
            x0, x_t, model_output, row, b, size, first, e, inside, WIDTH, COMPUTE
        )
        scale = row[MEAN_X0]
        d = row[LOGVAR_Q] - logvar
        term = kl_term(d, scale * (x - held), exponential(logvar * -1.0))
        if tl.max(last_step.to(tl.int32)) != 0:
            mean = (scale * held) + (row[MEAN_X] * noisy)
            term = tl.where(last_step, discretized(x, mean, 0.5 * logvar, False), term)
        total = tl.where(valid, row_sum(term, inside, S, E), float("nan"))
        store_sum(terms, workspace, None, total, b, chunk, live, size, False)
        chunk += 1


@triton.jit(
    do_not_specialize=["batch", "each", "times"],
    do_not_specialize_on_alignment=["grad", "table", "t", "errors"],
)
def vlb_terms_backward_kernel(
    g_output,
    grad,
    x0,
    x_t,
    model_output,
    table,
    t,
    errors,
    batch,
    size,
    each,
    times,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    ERROR: tl.constexpr,
    WIDTH: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    rows, valid, last_step = known_rows(table, t, times, errors, b, live, ERROR)
    g = tl.load(grad + b, mask=live, other=0.0).to(COMPUTE)
    row = coefficients(rows, valid, COMPUTE)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        x, noisy, free, held, logvar = prediction(
            x0, x_t, model_output, row, b, size, first, e, inside, WIDTH, COMPUTE
        )
        scale = row[MEAN_X0]
        d = row[LOGVAR_Q] - logvar
        by_mean, _, by_logvar = kl_gradient(d, scale * (x - held), exponential(logvar * -1.0))
        by_x0 = (scale * by_mean) * -1.0
        if tl.max(last_step.to(tl.int32)) != 0:
            mean = (scale * held) + (row[MEAN_X] * noisy)
            bin_mean, bin_log_scale = discretized(x, mean, 0.5 * logvar, True)
            by_x0 = tl.where(last_step, scale * bin_mean, by_x0)
            by_logvar = tl.where(last_step, 0.5 * bin_log_scale, by_logvar)
        g_out = tl.where((free > held) | (free < held), 0.0, row[X0_OUT] * by_x0)
        g_out = tl.where(valid, g * g_out, float("nan"))
        tl.store(
            at(g_output, b, size, first, e, WIDTH), g_out.to(g_output.dtype.element_ty), mask=inside
        )
        if WIDTH == 2:
            span = 0.5 * (row[LOGVAR_HI] - row[LOGVAR_LO])
            g_v = tl.where(valid, g * (span * by_logvar), float("nan"))
            tl.store(
                at(g_output + size, b, size, first, e, WIDTH),
                g_v.to(g_output.dtype.element_ty),
                mask=inside,
            )
        chunk += 1
