"""exp, e^x - 1, e^x - 1 - x, ln, ln(1 + x) and Mills' ratio, kernels/README.md section 1.1.

    x = k ln 2 + r:  e^x = 2^k (1 + r + q),  q = r^2 p(r)         x = 2^n m:  ln x = n ln 2 + ln m

float32 uses the README's polynomials. float64 uses the platform's exp and log, from which functions
that Triton lacks are computed. NaN passes through the exponentials; the logarithms' arguments are
positive.
"""

import math

import triton
import triton.language as tl

from .noise import LN2_HI, LN2_LO, SHIFT, logarithm_of_bits


def _constants(numbers):
    return [tl.constexpr(float.fromhex(number)) for number in numbers.split()]


EXP_HIGH, EXP_LOW, LOG2E, E0, E1, E2, E3, E4 = _constants(
    "0x1.617d78p+6 -0x1.5d589ep+6 0x1.715476p+0 0x1.0p-1 0x1.55549p-3 0x1.55545ep-5 0x1.123b46p-7"
    " 0x1.6db414p-10"
)
MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
TAYLOR = tl.constexpr(tuple(1.0 / math.factorial(k) for k in range(2, 15)))
MILLS_32 = tl.constexpr(
    tuple(
        float.fromhex(number)
        for number in """
        0x1.7261bep+0 -0x1.628358p-3 -0x1.079782p-3 0x1.5d1e96p-3 -0x1.336a9cp-4 0x1.e0cfb6p-10
        0x1.47a39p-7 -0x1.f02c52p-11 -0x1.a0bc5cp-10 0x1.743e3ap-14 0x1.abb1e6p-13
        """.split()
    )
)
MILLS_64 = tl.constexpr(
    tuple(
        float.fromhex(number)
        for number in """
        0x1.e4aa012912ddep-1 -0x1.2781b2400ff5fp-2 0x1.ab0eaedcc9331p-4 0x1.21676855029b8p-7
        -0x1.516c590cb6dabp-5
        0x1.d144a67134be9p-6 -0x1.29bd13850eaa6p-7 -0x1.1e9125529eb9bp-13 0x1.37b638fc4e051p-10
        -0x1.b02b929be4895p-13 -0x1.34b8064a4d0b7p-13 0x1.6783b91f1b6f5p-15 0x1.808bc86681798p-16
        -0x1.d4e3dcd3b691cp-18 -0x1.2dc178fd9686ep-18 0x1.eb5bf293ed918p-21 0x1.06583411e019bp-20
        -0x1.fdfa3dfca28a8p-25 -0x1.b17bb92240d37p-23 -0x1.46f1f2568d1a1p-27 0x1.1b9364d0746d2p-25
        0x1.448415700db85p-29 -0x1.a02be90178f07p-29
        """.split()
    )
)


@triton.constexpr_function
def last(coefficients):
    return len(coefficients) - 1


@triton.constexpr_function
def coefficient(coefficients, index):
    return coefficients[index]


@triton.jit
def horner(x, COEFFICIENTS: tl.constexpr):
    """c[0] + x (c[1] + x (...))."""
    LAST: tl.constexpr = last(COEFFICIENTS)
    p = x * coefficient(COEFFICIENTS, LAST) + coefficient(COEFFICIENTS, LAST - 1)
    for i in tl.static_range(2, LAST + 1):
        p = p * x + coefficient(COEFFICIENTS, LAST - i)
    return p


@triton.jit
def divided(x, y):
    """x / y, correctly rounded (`/` is not in float32)."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def exponent(x):
    """t, r, q of a float32 x: x = k ln 2 + r, q = e^r - 1 - r; k = t - MAGIC are the low bits of t.

    Outside the range of 2^k they are of no use, so x is not clamped: `scaled` selects there.
    """
    t = x * LOG2E + MAGIC
    k = t - MAGIC
    r = (x - k * LN2_HI) - k * LN2_LO
    p = (((E4 * r + E3) * r + E2) * r + E1) * r + E0
    return t, r, (r * r) * p


@triton.jit
def power(t, r, q):
    """2^k (1 + r + q), which is e^x in the range of 2^k."""
    y = 1.0 + (r + q)
    bits = y.to(tl.int32, bitcast=True) + (t.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def scaled(x, t, r, q):
    """e^x: infinite above the range of 2^k, zero below it, and NaN for NaN."""
    y = power(t, r, q)
    return tl.where(x <= EXP_HIGH, tl.where(x < EXP_LOW, 0.0, y), x * float("inf"))


@triton.jit
def exponential(x):
    """e^x."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        t, r, q = exponent(x)
        return scaled(x, t, r, q)


@triton.jit
def exp_minus_1(x):
    """e^x - 1 without cancellation near 0."""
    if x.dtype == tl.float64:
        return tl.where(tl.abs(x) < 0.25, x + (x * x) * horner(x, TAYLOR), tl.exp(x) - 1.0)
    else:
        t, r, q = exponent(x)
        return tl.where(t == MAGIC, r + q, scaled(x, t, r, q) - 1.0)


@triton.jit
def exp_minus_1_minus(x):
    """e^x - 1 - x without cancellation near 0."""
    if x.dtype == tl.float64:
        return tl.where(tl.abs(x) < 0.25, (x * x) * horner(x, TAYLOR), (tl.exp(x) - 1.0) - x)
    else:
        t, r, q = exponent(x)
        return tl.where(t == MAGIC, q, (scaled(x, t, r, q) - 1.0) - x)


@triton.jit
def logarithm(x):
    """ln x of a positive (in float32 normal) x."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        return logarithm_of_bits(x.to(tl.int32, bitcast=True) + SHIFT)


@triton.jit
def log_1_plus(x):
    """ln(1 + x) for x > -1, corrected for the rounding error of 1 + x."""
    u = 1.0 + x
    return logarithm(u) + divided(x - (u - 1.0), u)


@triton.jit
def mills(t):
    """Q(t)/phi(t) for t >= 0: the normal distribution's upper tail over its density."""
    if t.dtype == tl.float64:
        s = tl.where(t > 1e150, 1.0, (t - 4.0) / (t + 4.0))
        return horner(s, MILLS_64) / (1.0 + 0.75 * t)
    else:
        s = tl.where(t > 1e30, 1.0, tl.div_rn(t - 3.0, t + 3.0))
        return tl.div_rn(horner(s, MILLS_32), 1.0 + 1.25 * t)
