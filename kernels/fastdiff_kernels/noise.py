"""Noise as a pure function: normal = f(seed, sample id, stream, step, element), kernels/README.md
section 1.

Philox4x32-10 (Salmon et al. 2011) maps counter (element // 4, step, id, stream) under key seed to
four 32-bit words; Box-Muller maps two words to two normals:

    sqrt(-2 ln u1) * cos(2 pi u2),   sqrt(-2 ln u1) * sin(2 pi u2),   u = ((word >> 8) | 1) * 2^-24

Without FAST, only float32 add, multiply and correctly rounded sqrt occur, in the README's order, so
the bits (launched with enable_fp_fusion=False) are those of every other backend. Factors that are
powers of two move through these operations without a change of any bit, so they are part of the
constants. FAST uses the hardware's approximate sqrt, a shorter polynomial for the logarithm, and is
launched with fused multiply-adds. It keeps the polynomials: tl.sin and tl.cos contain a reduction
for large arguments that is not needed here (125 instructions per element instead of 30), and
lg2.approx is inaccurate for small radii.
"""

import triton
import triton.language as tl


def _constants(*hexadecimal):
    return [tl.constexpr(float.fromhex(number)) for number in hexadecimal]


L0, L1, L2, L3, L4, L5, L6, L7 = _constants(
    "0x1.555554p-2",
    "-0x1.000226p-2",
    "0x1.99a008p-3",
    "-0x1.547244p-3",
    "0x1.22da1cp-3",
    "-0x1.0d8542p-3",
    "0x1.055b72p-3",
    "-0x1.38b58ap-4",
)
LN2_HI, LN2_LO = _constants("0x1.62e4p-1", "0x1.7f7d1cp-20")
S0, S1, S2, S3 = _constants("0x1.921fb6p+1", "-0x1.4abbbap+2", "0x1.465ec6p+1", "-0x1.2d9bb6p-1")
C0, C1, C2, C3 = _constants("-0x1.3bd3ccp+2", "0x1.03c1dep+2", "-0x1.55c664p+0", "0x1.d9f7bcp-3")
# FAST's -8 ln(1 + d)/d for 1 + d in [sqrt(1/2), sqrt(2)], by interpolation at Chebyshev nodes
F0, F1, F2, F3, F4, F5, F6, F7 = _constants(
    "-0x1.fffffep+2",
    "0x1.00007ep+2",
    "-0x1.5558acp+1",
    "0x1.ff5cfcp+0",
    "-0x1.97d34cp+0",
    "0x1.61db9p+0",
    "-0x1.4a43fcp+0",
    "0x1.955046p-1",
)
# -8 ln 2, of an exponent that is not shifted to its place
FAST_LN2 = tl.constexpr(-8.0 * 0.6931471805599453 * 2.0**-23)
SQRT_HALF = tl.constexpr(0x3F3504F3)  # its bits
FRACTION, EXPONENT = tl.constexpr(0x007FFFFF), tl.constexpr(-0x00800000)  # masks of a float32
# from the bits of x to `logarithm_of_bits`, whose exponent is that of x/sqrt(1/2), rounded down
SHIFT = tl.constexpr(0x3F800000 - 0x3F3504F3 - (127 << 23))
UNIT = tl.constexpr(2.0**-23)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32 operands that broadcast; values that a row shares are computed once.

    A 64-bit product is one IMAD.WIDE instruction; umulhi and a low product would be two.
    """
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def split(h):
    """d = m - 1 and n * 2^23 for h = n * 2^23 + the distance of m's bits from those of sqrt(1/2);
    m is in [sqrt(1/2), sqrt(2)).
    """
    d = ((h & FRACTION) + SQRT_HALF).to(tl.float32, bitcast=True) - 1.0
    return d, (h & EXPONENT).to(tl.float32)


@triton.jit
def logarithm_of_bits(h):
    """ln(2^n m) for the h of `split`."""
    d, n = split(h)
    p = L7 * d + L6
    p = p * d + L5
    p = p * d + L4
    p = p * d + L3
    p = p * d + L2
    p = p * d + L1
    p = p * d + L0
    dd = d * d
    y = (dd * d) * p
    y = y + n * (LN2_LO * UNIT)
    y = y - 0.5 * dd
    return (d + y) + n * (LN2_HI * UNIT)


@triton.jit
def fast_logarithm_of_bits(h):
    """-8 ln(2^n m) for the h of `split`, to 3e-7."""
    d, n = split(h)
    p = F7 * d + F6
    p = p * d + F5
    p = p * d + F4
    p = p * d + F3
    p = p * d + F2
    p = p * d + F1
    p = p * d + F0
    return p * d + n * FAST_LN2


@triton.jit
def normal_pair(a, b, centre, FAST: tl.constexpr):
    """Two normals (the cosine's, the sine's) from two uint32 words.

    centre: 1.5, or NaN where the normals are to be NaN.
    """
    # k * 2^8, of which the float is exact; u1 = k * 2^-24
    k = ((a & 0xFFFFFF00) | 0x100).to(tl.float32)
    h = k.to(tl.int32, bitcast=True) + (SHIFT - (32 << 23))
    if FAST:
        r = tl.sqrt(fast_logarithm_of_bits(h))
    else:
        r = tl.sqrt_rn(-8.0 * logarithm_of_bits(h))  # the README's radius, doubled
    # 1 + (j mod 2^23) * 2^-23 by its bits; v = 2 ((j mod 2^23) - 2^22) * 2^-24, twice the README's,
    # follows without rounding
    j = (b >> 8) | 1
    v = ((j & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - centre
    z = v * v
    s = v * (((S3 / 128.0 * z + S2 / 32.0) * z + S1 / 8.0) * z + S0 / 2.0)
    c = (((C3 / 256.0 * z + C2 / 64.0) * z + C1 / 16.0) * z + C0 / 4.0) * z + 1.0
    half_sin2 = s * c
    half_cos2 = 0.5 - s * s
    # j >> 23 is the word's top bit: it is the sign of the radius
    r = (r.to(tl.uint32, bitcast=True) ^ (b & 0x80000000)).to(tl.float32, bitcast=True)
    # `-r` would be computed as 0 - r; a product with -1 is a free sign
    return (r * -1.0) * half_sin2, r * half_cos2


@triton.jit
def stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live):
    """Key and id [S, 1] of the samples b, from the tensors or, without them, the seed and id b."""
    if seeds is None:
        k0 = seed_lo.to(tl.uint32)
        k1 = seed_hi.to(tl.uint32)
    else:
        seed = tl.load(seeds + b, mask=live, other=0)
        k0 = seed.to(tl.uint32)
        k1 = (seed >> 32).to(tl.uint32)
    if sample_ids is None:
        sample_id = b
    else:
        sample_id = tl.load(sample_ids + b, mask=live, other=0)
    return k0, k1, sample_id


@triton.jit
def normals(first, k0, k1, sample_id, step, stream_index, E: tl.constexpr, FAST: tl.constexpr):
    """float32 normals [S, E] of the elements first ... first + E - 1 (first a multiple of 4) of S
    samples; NaN for an id outside [0, 2^56), whose upper bits would be taken for another stream.

    stream_index: the stream in its lower 8 bits, and above them a window's first group.
    """
    centre = tl.where((sample_id >> 56) == 0, 1.5, float("nan")).to(tl.float32)
    origin = (first >> 2).to(tl.uint32) + (stream_index >> 8).to(tl.uint32)
    group = (origin + tl.arange(0, E // 4).to(tl.uint32))[None, :]
    c3 = (stream_index.to(tl.uint32) << 24) | (sample_id >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox(group, step.to(tl.uint32), sample_id.to(tl.uint32), c3, k0, k1)
    n0, n1 = normal_pair(w0, w1, centre, FAST)
    n2, n3 = normal_pair(w2, w3, centre, FAST)
    # four neighbouring elements stay in one thread, which stores them in one 16-byte access
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
