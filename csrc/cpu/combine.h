// Linear combinations of a row over a block: c1*v1 + c2*v2 + …, started at +0, in column order, every product and sum
// rounded. One pass per output, unrolled for the number of operands; and the other elementwise passes of a step.
#pragma once

#include "convert.h"
#include "row.h"

namespace fastdiff::FD_LEVEL {

// Exact aliasing (to == a v) is fine: an element is read before it is written, and no other element is touched.
template <int K, class C>
static void combine_some(const C* const* operands, const Combination<C>& c, int64_t n, C* to) {
    const C* v[K];
    C k[K];
    for (int i = 0; i < K; ++i) {
        v[i] = operands[c.operand[i]];
        k[i] = c.coefficient[i];
    }
    FD_SIMD
    for (int64_t e = 0; e < n; ++e) {
        C sum = 0;
#pragma GCC unroll 8
        for (int i = 0; i < K; ++i) sum = sum + k[i] * v[i][e];
        to[e] = sum;
    }
}

template <class C>
static void combine(const C* const* operands, const Combination<C>& c, int64_t n, C* to) {
    switch (c.count) {
        case 0: memset(to, 0, n * sizeof(C)); break;
        case 1: combine_some<1>(operands, c, n, to); break;
        case 2: combine_some<2>(operands, c, n, to); break;
        case 3: combine_some<3>(operands, c, n, to); break;
        case 4: combine_some<4>(operands, c, n, to); break;
        case 5: combine_some<5>(operands, c, n, to); break;
        case 6: combine_some<6>(operands, c, n, to); break;
        case 7: combine_some<7>(operands, c, n, to); break;
        default: combine_some<8>(operands, c, n, to); break;
    }
}

// by comparison and select, so that NaN passes
template <class C>
static void clip(C* x, C bound, int64_t n) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) {
        C v = x[i] > bound ? bound : x[i];
        x[i] = v < -bound ? -bound : v;
    }
}

static inline float exponential(float x) {
    const float magic = 12582912.0f;
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float k = (x * 0x1.715476p+0f + magic) - magic;
    float r = (x - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
    float p = 0x1.6db414p-10f;
    p = p * r + 0x1.123b46p-7f;
    p = p * r + 0x1.55545ep-5f;
    p = p * r + 0x1.55549p-3f;
    p = p * r + 0x1.0p-1f;
    float y = 1.0f + (r + (r * r) * p);
    return bit_cast<float>(bit_cast<uint32_t>(y) + ((uint32_t)(int32_t)k << 23));
}
static inline double exponential(double x) { return exp(x); }

// z * exp(0.5*logvar), logvar interpolated between lo and hi by v in [-1, 1]
template <class C>
static void scale_noise(const C* z, const C* v, C lo, C hi, int64_t n, C* to) {
    const C span = hi - lo;
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = z[i] * exponential((C)0.5 * (lo + span * ((v[i] + 1) * (C)0.5)));
}

template <class C>
static void guide(const C* cond, const C* uncond, C g, int64_t n, C* to) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = uncond[i] + g * (cond[i] - uncond[i]);
}

template <class C>
static void add_scaled(const C* v, C k, const C* gradient, int64_t n, C* to) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = v[i] + k * gradient[i];
}

template <class C>
static void scale(const C* v, C k, int64_t n, C* to) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = k * v[i];
}

}  // namespace fastdiff::FD_LEVEL
