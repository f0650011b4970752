"""step_log_prob: the log-probability of a step that a row has drawn, kernels/README.md section 13.

The kernel is that of reverse_step, which reads x_s instead of writing it and draws no noise.
"""

import triton
import triton.language as tl

from .reverse_step import reverse_step_kernel


@triton.jit(
    do_not_specialize=["batch", "each", "table_rows"],
    do_not_specialize_on_alignment=[
        "table",
        "row",
        "guidance",
        "rescale",
        "terms",
        "threshold",
        "log_prob",
        "partials",
        "errors",
    ],
)
def step_log_prob_kernel(
    x_s,
    x_t,
    model_output,
    table,
    row,
    slots,
    guidance,
    gradient,
    rescale,
    terms,
    threshold,
    log_prob,
    partials,
    errors,
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
    MEAN: tl.constexpr,
):
    """The log-probabilities of the samples of a tile, or the sums of a chunk of each."""
    reverse_step_kernel(
        x_s,
        x_t,
        model_output,
        table,
        row,
        slots,
        None,
        None,
        None,
        guidance,
        gradient,
        rescale,
        terms,
        threshold,
        None,
        None,
        None,
        None,
        None,
        log_prob,
        partials,
        errors,
        0,
        0,
        0,
        batch,
        size,
        each,
        table_rows,
        S,
        E,
        FAST,
        ERROR,
        USES,
        WIDTH,
        0,
        1,
        1,
        False,
        MEAN,
        True,
    )
