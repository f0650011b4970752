"""q_posterior, the mean and variance of q(x_{t-1} | x_t, x0) (Ho et al. 2020, eq. 6-7),
kernels/README.md section 5.

    mean = (c0 * x0) + (c1 * x_t)

The coefficients are computed from alphas_cumprod in float64, once per sample. A t outside the table
is never used as an address: that sample becomes NaN and the error word is set.
"""

import triton
import triton.language as tl

from .tiling import at, samples, share, tile


@triton.jit
def coefficients(alphas_cumprod, t, valid):
    """c0, c1 and the variance [S, 1] in float64."""
    a = tl.load(alphas_cumprod + t, mask=valid, other=float("nan"))
    p = tl.load(alphas_cumprod + t - 1, mask=valid & (t > 0), other=1.0)
    alpha = a / p
    beta = 1.0 - alpha
    left = (1.0 - p) / (1.0 - a)
    return tl.sqrt(p) * (beta / (1.0 - a)), tl.sqrt(alpha) * left, beta * left


@triton.jit(
    do_not_specialize=["batch", "each", "times"],
    do_not_specialize_on_alignment=["variance", "log_variance", "t", "alphas_cumprod", "errors"],
)
def q_posterior_kernel(
    mean,
    variance,
    log_variance,
    x0,
    x_t,
    t,
    alphas_cumprod,
    errors,
    batch,
    size,
    each,
    times,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    ERROR: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if x0.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    index = tl.load(t + b, mask=live, other=0)
    valid = live & (index >= 0) & (index < times)
    tl.store(errors + b * 0, ERROR, mask=live & (valid == 0))
    c0, c1, v = coefficients(alphas_cumprod, index, valid)
    of_x0, of_x = c0.to(COMPUTE), c1.to(COMPUTE)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        x = tl.load(at(x_t, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        start = tl.load(at(x0, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        result = (of_x0 * start) + (of_x * x)
        tl.store(at(mean, b, size, first, e), result.to(mean.dtype.element_ty), mask=inside)
        chunk += 1
    if tl.program_id(1) == 0:  # in one program per sample
        _, _, floor = coefficients(
            alphas_cumprod, tl.where(index < 1, 1, index), valid & (times > 1)
        )
        alone = 1.0 - tl.load(alphas_cumprod + index, mask=valid, other=float("nan"))
        logarithm = tl.log(tl.where(times > 1, floor, alone))
        tl.store(variance + b, v.to(variance.dtype.element_ty), mask=live)
        tl.store(log_variance + b, logarithm.to(log_variance.dtype.element_ty), mask=live)
