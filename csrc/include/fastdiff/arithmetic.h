// Noise and elementary functions (kernels/README.md, sections 1 and 1.1), written once for every CPU
// level and for CUDA: the code that is tested on the CPU runs on the GPU. It is compiled without
// contraction (-ffp-contract=off, -fmad=false).
//
// Everything is branch-free (values are selected), so loops over it are vectorised. All names are local
// to the namespace of one level, because the linker must never keep an inline function compiled for
// AVX-512 for the baseline. C is the compute type, float or double.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define FD_HD static __host__ __device__ __forceinline__
#define FD_UNROLL _Pragma("unroll")
#else
#define FD_HD static inline __attribute__((always_inline))
#define FD_UNROLL _Pragma("GCC unroll 32")
#endif

namespace fastdiff::FD_LEVEL {

template <class To, class From>
FD_HD To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <class C>
struct BitsOf;
template <>
struct BitsOf<float> {
    using Bits = uint32_t;
};
template <>
struct BitsOf<double> {
    using Bits = uint64_t;
};
template <class C>
using Bits = typename BitsOf<C>::Bits;

// condition ? a : b. Compilers tend to branch around expensive operands, and a loop with branches is
// not vectorised, so on the CPU the selection uses bit masks.
template <class C>
FD_HD C select(bool condition, C a, C b) {
#if defined(__CUDA_ARCH__)
    return condition ? a : b;
#else
    const Bits<C> mask = -(Bits<C>)condition;
    return bit_cast<C>((Bits<C>)((bit_cast<Bits<C>>(a) & mask) | (bit_cast<Bits<C>>(b) & ~mask)));
#endif
}

// c[0] + x*(c[1] + x*(…)), for scalars and for packs of vectors
template <class X, class C, int N>
FD_HD X horner(const C (&c)[N], X x) {
    X p = x * c[N - 1] + c[N - 2];
    FD_UNROLL
    for (int i = N - 3; i >= 0; --i) p = p * x + c[i];
    return p;
}

// ---- section 1: noise. Operations that differ between scalars and packs of vectors are overloaded.

FD_HD float float_of(uint32_t integer) { return (float)(int32_t)integer; }
FD_HD float float_bits(uint32_t bits) { return bit_cast<float>(bits); }
FD_HD uint32_t bits_of(float value) { return bit_cast<uint32_t>(value); }
FD_HD float root(float value) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(value);
#else
    return sqrtf(value);
#endif
}

// ln of m * 2^n, with the bits of a positive normal number plus 004AFB0D and the integer taken off its exponent
template <class W>
FD_HD auto log_of_bits(W h, uint32_t bias) {
    const float l[] = {0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a008p-3f, -0x1.547244p-3f,
                       0x1.22da1cp-3f, -0x1.0d8542p-3f, 0x1.055b72p-3f, -0x1.38b58ap-4f};
    auto n = float_of((h >> 23) - bias);
    auto d = float_bits((h & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    auto dd = d * d;
    auto y = (dd * d) * horner(l, d);
    y = y + n * 0x1.7f7d1cp-20f;
    y = y - dd * 0.5f;
    return (d + y) + n * 0x1.62e4p-1f;
}

// The two normals of every pair of words (a, b).
template <class W, class F>
FD_HD void box_muller(W a, W b, F& cos_element, F& sin_element) {
    const float sine[] = {0x1.921fb6p+1f, -0x1.4abbbap+2f, 0x1.465ec6p+1f, -0x1.2d9bb6p-1f};
    const float cosine[] = {-0x1.3bd3ccp+2f, 0x1.03c1dep+2f, -0x1.55c664p+0f, 0x1.d9f7bcp-3f};
    F r = root(log_of_bits(bits_of(float_of((a >> 8) | 1u)) + 0x004AFB0Du, 127 + 24) * -2.0f);
    F v = float_of((((b >> 8) | 1u) & 0x007FFFFFu) - 0x00400000u) * 0x1p-24f;
    F z = v * v;
    F s = v * horner(sine, z);
    F c = horner(cosine, z) * z + 1.0f;
    F t = s + s;
    // the top bit of b is that of j; it flips the radius
    W flipped = bits_of(r) ^ (b & 0x80000000u);
    cos_element = float_bits(flipped ^ 0x80000000u) * (t * c);
    sin_element = float_bits(flipped) * ((t * s) * -1.0f + 1.0f);
}

struct Philox {
    uint32_t w[4];
};

FD_HD Philox philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
    FD_UNROLL
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Elements 4 group … 4 group + 3 of a sample.
FD_HD void normals4(uint64_t seed, uint64_t id, uint64_t stream, uint64_t step, uint64_t group, float (&out)[4]) {
    const Philox p = philox((uint32_t)(group + (stream >> 8)), (uint32_t)step, (uint32_t)id, (uint32_t)(stream << 24 | id >> 32),
                            (uint32_t)seed, (uint32_t)(seed >> 32));
    box_muller(p.w[0], p.w[1], out[0], out[1]);
    box_muller(p.w[2], p.w[3], out[2], out[3]);
}

// ---- section 1.1: elementary functions

struct Exponent {
    float k, r, q;  // x = k ln 2 + r, q = r*r*p = e^r - 1 - r
};

constexpr float EXP_HIGH = 0x1.617d78p+6f, EXP_LOW = -0x1.5d589ep+6f;

FD_HD Exponent exponent(float x) {
    const float e[] = {0x1.0p-1f, 0x1.55549p-3f, 0x1.55545ep-5f, 0x1.123b46p-7f, 0x1.6db414p-10f};
    const float magic = 12582912.0f;
    // outside [EXP_LOW, EXP_HIGH], to which the README clamps x, the result is not used
    const float k = (x * 0x1.715476p+0f + magic) - magic;
    const float r = (x - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
    return {k, r, (r * r) * horner(e, r)};
}

FD_HD float exponential(float x, Exponent s) {
    const float y = 1.0f + (s.r + s.q);
    const uint32_t power = bits_of(s.k + 12582912.0f) << 23;  // k's low bits are in the mantissa; those of a NaN are shifted out
    const float scaled = float_bits(bits_of(y) + power);
    return select(x > EXP_HIGH, INFINITY, select(x < EXP_LOW, 0.0f, scaled));
}

FD_HD float exponential(float x) { return exponential(x, exponent(x)); }
FD_HD double exponential(double x) { return exp(x); }

// e^x - 1
FD_HD float exp_minus_1(float x) {
    const Exponent s = exponent(x);
    return select(s.k == 0, s.r + s.q, exponential(x, s) - 1.0f);
}
FD_HD double exp_minus_1(double x) { return expm1(x); }

// e^x - 1 - x
FD_HD float exp_minus_1_minus(float x) {
    const Exponent s = exponent(x);
    return select(s.k == 0, s.q, (exponential(x, s) - 1.0f) - x);
}
FD_HD double exp_minus_1_minus(double x) {
    const double c[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,        1.0 / 720,         1.0 / 5040,        1.0 / 40320,
                        1.0 / 362880,  1.0 / 3628800,  1.0 / 39916800,  1.0 / 479001600,  1.0 / 6227020800,  1.0 / 87178291200};
    const double series = (x * x) * horner(c, x);
    return select(fabs(x) < 0.25, series, expm1(x) - x);
}

FD_HD float logarithm(float x) { return log_of_bits(bits_of(x) + 0x004AFB0Du, 127); }
FD_HD double logarithm(double x) { return log(x); }

FD_HD float log_1_plus(float x) {
    const float u = 1.0f + x;
    return logarithm(u) + (x - (u - 1.0f)) / u;
}
FD_HD double log_1_plus(double x) { return log1p(x); }

// Q(t)/phi(t) for t >= 0: the normal distribution's upper tail over its density
FD_HD float mills(float t) {
    const float p[] = {0x1.7261bep+0f,  -0x1.628358p-3f, -0x1.079782p-3f,  0x1.5d1e96p-3f,  -0x1.336a9cp-4f, 0x1.e0cfb6p-10f,
                       0x1.47a39p-7f,   -0x1.f02c52p-11f, -0x1.a0bc5cp-10f, 0x1.743e3ap-14f, 0x1.abb1e6p-13f};
    const float s = select(t > 1e30f, 1.0f, (t - 3.0f) / (t + 3.0f));
    return horner(p, s) / (1.0f + 1.25f * t);
}
FD_HD double mills(double t) {
    const double p[] = {0x1.e4aa012912ddep-1,  -0x1.2781b2400ff5fp-2,  0x1.ab0eaedcc9331p-4,  0x1.21676855029b8p-7,
                        -0x1.516c590cb6dabp-5, 0x1.d144a67134be9p-6,   -0x1.29bd13850eaa6p-7, -0x1.1e9125529eb9bp-13,
                        0x1.37b638fc4e051p-10, -0x1.b02b929be4895p-13, -0x1.34b8064a4d0b7p-13, 0x1.6783b91f1b6f5p-15,
                        0x1.808bc86681798p-16, -0x1.d4e3dcd3b691cp-18, -0x1.2dc178fd9686ep-18, 0x1.eb5bf293ed918p-21,
                        0x1.06583411e019bp-20, -0x1.fdfa3dfca28a8p-25, -0x1.b17bb92240d37p-23, -0x1.46f1f2568d1a1p-27,
                        0x1.1b9364d0746d2p-25, 0x1.448415700db85p-29,  -0x1.a02be90178f07p-29};
    const double s = select(t > 1e150, 1.0, (t - 4.0) / (t + 4.0));
    return horner(p, s) / (1.0 + 0.75 * t);
}

}  // namespace fastdiff::FD_LEVEL
