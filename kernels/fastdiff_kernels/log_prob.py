"""log N(x_s; mean, std^2 I) of a row's draw, kernels/README.md section 13.

    y = (x_s - mean)/|c_z| (exp(-h), h half of a learned log-variance),   term = y^2/2 (+ h)
    log p = -(sum of the terms) - n ln |c_z| - n/2 ln(2 pi)

A step that is being sampled and one that is scored later use the same functions on the same values,
so both give the same bits.
"""

import triton
import triton.language as tl

from .combine import FIRST, Z, entry
from .elementary import exponential

COLUMNS = tl.constexpr(62)
HALF_LOG_2PI = tl.constexpr(0.91893853320467274178)


@triton.jit
def log_prob_term(stored, mean, inverse, half, learned, LEARNED: tl.constexpr):
    """The term of an element of x_s as it is stored; half and learned count with LEARNED."""
    y = (stored - mean) * inverse
    if LEARNED:
        y = tl.where(learned, y * exponential(half * -1.0), y)
    term = 0.5 * (y * y)
    if LEARNED:
        term = tl.where(learned, term + half, term)
    return term


@triton.jit
def log_prob_of(
    total,
    table,
    row,
    b,
    live,
    table_rows,
    size,
    COMPUTE: tl.constexpr,
    MEAN: tl.constexpr,
    SCORED: tl.constexpr,
):
    """The samples' log-probabilities in float64, from the sums of their terms.

    A row outside the table gives NaN, and so does, if SCORED, one whose next x has no noise; that
    of a step has 0.
    """
    index = tl.load(row + b, mask=live, other=0)
    valid = live & (index >= 0) & (index < table_rows)
    c = entry(table + tl.where(valid, index, 0) * COLUMNS, FIRST + Z, valid, COMPUTE)
    n = (b * 0 + size).to(tl.float64)  # a tensor even if size is a constant
    deviation = tl.where(c != 0.0, tl.abs(c.to(tl.float64)), 1.0)
    value = (total.to(tl.float64) * -1.0 - n * tl.log(deviation)) - n * HALF_LOG_2PI
    if MEAN:
        value = value / tl.where(n > 0.0, n, 1.0)
    quiet = 0.0
    if SCORED:
        quiet = float("nan")
    value = tl.where(c != 0.0, value, quiet)
    return tl.where(valid, tl.where(n > 0.0, value, 0.0), float("nan"))
