"""discretized_gaussian_nll, -ln of a Gaussian's mass on the bin of a pixel (Ho et al. 2020, eq.
13), in nats.

    nll = -ln(Q(a) - Q(b)),   a, b = |x0 - mean| * exp(-log_scale) -+ h
    h: half the bin's width in standard deviations

Q is the upper tail of the normal distribution; the first and the last bin extend to infinity. The
difference cancels where bins are narrow and underflows in the tail, so the mass is computed from a
series, from Mills' ratio, or from 1 minus the rest: kernels/README.md section 10. Inputs are views
[B, n] as in gaussian_kl.
"""

import math

import triton
import triton.language as tl

from .elementary import divided, exp_minus_1, exponential, logarithm, mills
from .sums import row_sum, store_sum
from .tiling import at, samples, share, strided, tile

HALF_LOG_2PI, DENSITY = (
    tl.constexpr(0.5 * math.log(2 * math.pi)),
    tl.constexpr(1 / math.sqrt(2 * math.pi)),
)
BIN, LOG_BIN = tl.constexpr(2 / 255), tl.constexpr(math.log(2 / 255))


@triton.constexpr_function
def series_coefficient(k, j):
    return 1.0 / (math.factorial(2 * j) * (2 * k + 2 * j + 1))


@triton.jit
def narrow_series(hh, yy, K: tl.constexpr, J: tl.constexpr):
    """S1: sum over k < K of (-hh/2)^k/k! times the sum over j < J of yy^j/((2j)! (2k + 2j + 1)),
    less its first term.
    """
    inner = yy * series_coefficient(0, J - 1)
    for j in tl.static_range(2, J):
        inner = (inner + series_coefficient(0, J - j)) * yy
    total = inner
    power = hh * -0.5
    for k in tl.static_range(1, K):
        inner = yy * series_coefficient(k, J - 1) + series_coefficient(k, J - 2)
        for j in tl.static_range(3, J + 1):
            inner = inner * yy + series_coefficient(k, J - j)
        total = total + power * inner
        power = power * (hh * (-0.5 / (k + 1)))
    return total


@triton.jit
def level_minus(u, mean):
    """u/255 - mean to full relative precision: high*255 is exact, so the quotient has twice the
    digits.

    high is u/255 without its last 12 bits, which u * (1/255) has too: 255 is 2^8 - 1, so the digits
    of a level u are a period of eight, and never nearly 0 or 1 where they are cut.
    """
    quotient = u * (0.5 * BIN)
    if u.dtype == tl.float64:
        high = ((quotient.to(tl.int64, bitcast=True) >> 12) << 12).to(tl.float64, bitcast=True)
    else:
        high = ((quotient.to(tl.int32, bitcast=True) >> 12) << 12).to(tl.float32, bitcast=True)
    return (high - mean) + (u - high * 255.0) * (0.5 * BIN)


@triton.jit
def open_ends(a):
    """D of the tail, 1 minus the mass in the middle, and the density at a, of an open bin."""
    mills_a = mills(tl.abs(a))
    fa = exponential((-0.5 * a) * a) * DENSITY
    return mills_a, mills_a * fa, fa


@triton.jit
def wide_bins(outer, missing, b, e, end):
    """The same of a bin from a to b, and the density at b; open bins keep theirs.

    outer, missing: those of an open bin from a.
    """
    mills_b = mills(tl.where(b < 0.0, 0.0, b))
    fb = tl.where(end, 0.0, exponential((-0.5 * b) * b) * DENSITY)
    return tl.where(end, outer, (outer - mills_b) - mills_b * e), missing + mills_b * fb, fb


@triton.jit
def discretized(x0, mean, log_scale, GRADIENT: tl.constexpr):
    """The term, or with GRADIENT its derivatives by mean and by log_scale.

    A NaN in the distance is the result. All narrow bins of a tile cost a third of wide ones, open
    ends two thirds, and nearly every tile of pictures has ends: saturated pixels.
    """
    DOUBLE: tl.constexpr = x0.dtype == tl.float64
    MAGIC: tl.constexpr = (
        6755399441055744.0 if DOUBLE else 12582912.0
    )  # rounds to an integer, ties to even
    WIDTH: tl.constexpr = 1 / 32 if DOUBLE else 1 / 4
    Y: tl.constexpr = 1 / 16 if DOUBLE else 1 / 2
    level = 127.5 * (x0 + 1.0)
    level = tl.where(level > 255.0, 255.0, level)
    level = tl.where(level < 0.0, 0.0, level)
    level = (level + MAGIC) - MAGIC
    center = level_minus(2.0 * level - 255.0, mean)
    inverse = exponential(log_scale * -1.0)
    first, last = level == 0.0, level == 255.0
    end = first | last
    flip = first | ((last == 0) & (center < 0.0))
    w = inverse * BIN
    h = 0.5 * w
    center = tl.where(flip, center * -1.0, center)
    m = center * inverse
    a, b, y = (center - 0.5 * BIN) * inverse, m + h, m * h
    narrow = (end == 0) & (w < WIDTH) & (tl.abs(y) < Y)
    tail = a >= 0.0
    # 0: all bins are narrow, 1: some are open ends, 2: some are wide and closed
    kinds = tl.max(tl.where(narrow, 0, tl.where(end, 1, 2)))

    s1 = narrow_series(h * h, y * y, 5 if DOUBLE else 3, 5 if DOUBLE else 4)
    if GRADIENT:
        e = exp_minus_1(-2.0 * y)
        by_mean, by_log_scale = e, a * e + w * (1.0 + e)
        below = (w * (1.0 + s1)) * exponential((0.5 * h) * h - y)
        if kinds != 0:
            outer, missing, fa = open_ends(a)
            fb = tl.zeros_like(fa)
            if kinds == 2:
                outer, missing, fb = wide_bins(outer, missing, b, e, end)
            outside = narrow | tail
            v = tl.where(fb == 0.0, 0.0, b * fb) - tl.where(fa == 0.0, 0.0, a * fa)
            by_mean = tl.where(outside, tl.where(end, -1.0, e), fb - fa)
            by_log_scale = tl.where(outside, tl.where(end, a * -1.0, by_log_scale), v)
            below = tl.where(narrow, below, tl.where(tail, outer, 1.0 - missing))
        by_mean = tl.where(flip, inverse * -1.0, inverse) * divided(by_mean, below)
        by_log_scale = divided(by_log_scale, below)
        return tl.where(m != m, m, by_mean), tl.where(m != m, m, by_log_scale)
    else:
        # -ln(1 + s1), -ln(1 - missing) or -ln(outer); an element uses one of them
        squared, argument, outer = m, s1, m
        if kinds != 0:
            outer, missing, _ = open_ends(a)
            if kinds == 2:
                outer, missing, _ = wide_bins(outer, missing, b, exp_minus_1(-2.0 * y), end)
            squared = tl.where(narrow, m, a)
            argument = tl.where(narrow, s1, missing * -1.0)
        wide_tail = (narrow == 0) & tail
        u = 1.0 + argument
        log = logarithm(tl.where(wide_tail, outer, u))
        log = tl.where(wide_tail, log, log + divided(argument - (u - 1.0), u))
        nll = (
            ((0.5 * squared) * squared + HALF_LOG_2PI) + tl.where(narrow, log_scale - LOG_BIN, 0.0)
        ) - log
        nll = tl.where(narrow | tail, nll, log * -1.0)
        return tl.where(m != m, m, nll)


@triton.jit(
    do_not_specialize=["batch", "each"],
    do_not_specialize_on_alignment=["nll", "workspace"],
)
def discretized_gaussian_nll_kernel(
    nll,
    workspace,
    x0,
    mean,
    log_scale,
    x0_stride,
    mean_stride,
    log_scale_stride,
    batch,
    size,
    each,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    X0_STEP: tl.constexpr,
    MEAN_STEP: tl.constexpr,
    LOG_SCALE_STEP: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if nll.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        x = strided(x0, x0_stride, X0_STEP, b, first, e, live, inside, COMPUTE)
        m = strided(mean, mean_stride, MEAN_STEP, b, first, e, live, inside, COMPUTE)
        s = strided(log_scale, log_scale_stride, LOG_SCALE_STEP, b, first, e, live, inside, COMPUTE)
        total = row_sum(discretized(x, m, s, False), inside, S, E)
        store_sum(nll, workspace, None, total, b, chunk, live, size, False)
        chunk += 1


@triton.jit(
    do_not_specialize=["batch", "each"],
    do_not_specialize_on_alignment=["grad"],
)
def discretized_gaussian_nll_backward_kernel(
    g_mean,
    g_log_scale,
    grad,
    x0,
    mean,
    log_scale,
    x0_stride,
    mean_stride,
    log_scale_stride,
    batch,
    size,
    each,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    X0_STEP: tl.constexpr,
    MEAN_STEP: tl.constexpr,
    LOG_SCALE_STEP: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    g = tl.load(grad + b, mask=live, other=0.0).to(COMPUTE)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        x = strided(x0, x0_stride, X0_STEP, b, first, e, live, inside, COMPUTE)
        m = strided(mean, mean_stride, MEAN_STEP, b, first, e, live, inside, COMPUTE)
        s = strided(log_scale, log_scale_stride, LOG_SCALE_STEP, b, first, e, live, inside, COMPUTE)
        by_mean, by_log_scale = discretized(x, m, s, True)
        if g_mean is not None:
            tl.store(
                at(g_mean, b, size, first, e),
                (g * by_mean).to(g_mean.dtype.element_ty),
                mask=inside,
            )
        if g_log_scale is not None:
            tl.store(
                at(g_log_scale, b, size, first, e),
                (g * by_log_scale).to(g_log_scale.dtype.element_ty),
                mask=inside,
            )
        chunk += 1
