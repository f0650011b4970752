"""gaussian_kl between diagonal Gaussians (Kingma & Welling 2014, appendix B), nats,
kernels/README.md section 9.

    term = 0.5 * (expm1x(d) + (m*m)*i2)
    d = logvar1 - logvar2,  m = mean1 - mean2,  i2 = exp(-logvar2)

Inputs are views [B, n] with any stride between samples. A STEP of 0 between elements means one
value for the whole sample, which is read and transformed once. Without a second Gaussian it is the
standard normal.
"""

import triton
import triton.language as tl

from .elementary import exp_minus_1, exp_minus_1_minus, exponential
from .sums import row_sum, store_sum
from .tiling import at, samples, share, strided, tile


@triton.jit
def kl_term(d, m, inverse2):
    return 0.5 * (exp_minus_1_minus(d) + (m * m) * inverse2)


@triton.jit
def kl_gradient(d, m, inverse2):
    """The derivatives by mean1, logvar1 and logvar2; that by mean2 is minus the first."""
    expm1 = exp_minus_1(d)
    return m * inverse2, 0.5 * expm1, -0.5 * (expm1 + (m * m) * inverse2)


@triton.jit
def differences(
    mean1,
    logvar1,
    mean2,
    logvar2,
    mean1_stride,
    logvar1_stride,
    mean2_stride,
    logvar2_stride,
    b,
    first,
    e,
    live,
    inside,
    MEAN1_STEP: tl.constexpr,
    LOGVAR1_STEP: tl.constexpr,
    MEAN2_STEP: tl.constexpr,
    LOGVAR2_STEP: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """d, m and i2, each [S, E], or [S, 1] where all operands are constant within a sample."""
    m = strided(mean1, mean1_stride, MEAN1_STEP, b, first, e, live, inside, COMPUTE)
    d = strided(logvar1, logvar1_stride, LOGVAR1_STEP, b, first, e, live, inside, COMPUTE)
    inverse2 = tl.full([1, 1], 1.0, COMPUTE)
    if mean2 is not None:
        m = m - strided(mean2, mean2_stride, MEAN2_STEP, b, first, e, live, inside, COMPUTE)
        second = strided(logvar2, logvar2_stride, LOGVAR2_STEP, b, first, e, live, inside, COMPUTE)
        d = d - second
        inverse2 = exponential(second * -1.0)
    return d, m, inverse2


@triton.jit(
    do_not_specialize=["batch", "each"],
    do_not_specialize_on_alignment=["kl", "workspace"],
)
def gaussian_kl_kernel(
    kl,
    workspace,
    mean1,
    logvar1,
    mean2,
    logvar2,
    mean1_stride,
    logvar1_stride,
    mean2_stride,
    logvar2_stride,
    batch,
    size,
    each,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    MEAN1_STEP: tl.constexpr,
    LOGVAR1_STEP: tl.constexpr,
    MEAN2_STEP: tl.constexpr,
    LOGVAR2_STEP: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if kl.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        d, m, inverse2 = differences(
            mean1,
            logvar1,
            mean2,
            logvar2,
            mean1_stride,
            logvar1_stride,
            mean2_stride,
            logvar2_stride,
            b,
            first,
            e,
            live,
            inside,
            MEAN1_STEP,
            LOGVAR1_STEP,
            MEAN2_STEP,
            LOGVAR2_STEP,
            COMPUTE,
        )
        total = row_sum(kl_term(d, m, inverse2), inside, S, E)
        store_sum(kl, workspace, None, total, b, chunk, live, size, False)
        chunk += 1


@triton.jit(
    do_not_specialize=["batch", "each"],
    do_not_specialize_on_alignment=["grad"],
)
def gaussian_kl_backward_kernel(
    g_mean1,
    g_logvar1,
    g_mean2,
    g_logvar2,
    grad,
    mean1,
    logvar1,
    mean2,
    logvar2,
    mean1_stride,
    logvar1_stride,
    mean2_stride,
    logvar2_stride,
    batch,
    size,
    each,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    MEAN1_STEP: tl.constexpr,
    LOGVAR1_STEP: tl.constexpr,
    MEAN2_STEP: tl.constexpr,
    LOGVAR2_STEP: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    g = tl.load(grad + b, mask=live, other=0.0).to(COMPUTE)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        d, m, inverse2 = differences(
            mean1,
            logvar1,
            mean2,
            logvar2,
            mean1_stride,
            logvar1_stride,
            mean2_stride,
            logvar2_stride,
            b,
            first,
            e,
            live,
            inside,
            MEAN1_STEP,
            LOGVAR1_STEP,
            MEAN2_STEP,
            LOGVAR2_STEP,
            COMPUTE,
        )
        by_mean, by_logvar1, by_logvar2 = kl_gradient(d, m, inverse2)
        if g_mean1 is not None:
            tl.store(
                at(g_mean1, b, size, first, e),
                (g * by_mean).to(g_mean1.dtype.element_ty),
                mask=inside,
            )
        if g_logvar1 is not None:
            tl.store(
                at(g_logvar1, b, size, first, e),
                (g * by_logvar1).to(g_logvar1.dtype.element_ty),
                mask=inside,
            )
        if g_mean2 is not None:
            tl.store(
                at(g_mean2, b, size, first, e),
                (g * by_mean * -1.0).to(g_mean2.dtype.element_ty),
                mask=inside,
            )
        if g_logvar2 is not None:
            tl.store(
                at(g_logvar2, b, size, first, e),
                (g * by_logvar2).to(g_logvar2.dtype.element_ty),
                mask=inside,
            )
        chunk += 1
