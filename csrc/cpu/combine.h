// The elementwise passes of a step over a block. A row's linear combination c1*v1 + c2*v2 + … starts
// at +0 and is added in column order; every product and sum is rounded. There is one pass per output,
// unrolled for the number of operands.
#pragma once

#include "convert.h"
#include "row.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

// `to` may be the same memory as an operand: an element is read before it is written, and no other
// element is accessed.
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

template <class C>
static void clip(C* x, C bound, int64_t n) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) x[i] = held(x[i], bound);
}

// clip to the dynamic threshold s, then divide by it
template <class C>
static void threshold(C* x, C s, int64_t n) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) x[i] = held(x[i], s) / s;
}

// A plain row in one pass, which keeps x0 in a register. It rounds like combine, clip, combine.
template <bool CLIP, bool NOISE, class C>
static void step_plain(const C* const* v, const Row<C>& r, int64_t n, C* to) {
    const C *x = v[X], *out = v[OUT], *z = v[Z];
    const C from_x = r.x0.coefficient[0], from_out = r.x0.coefficient[1], bound = r.clip_bound;
    const C* c = r.outputs[0].coefficient;
    const C on_x = c[0], on_x0 = c[1], on_z = NOISE ? c[2] : 0;
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) {
        C x0 = ((C)0 + from_x * x[i]) + from_out * out[i];
        if (CLIP) x0 = held(x0, bound);
        C sum = ((C)0 + on_x * x[i]) + on_x0 * x0;
        if (NOISE) sum = sum + on_z * z[i];
        to[i] = sum;
    }
}

template <class C>
static void step_plain(const C* const* v, const Row<C>& r, int64_t n, C* to) {
    const bool noise = r.outputs[0].count == 3;
    if (r.clip_mode)
        noise ? step_plain<true, true>(v, r, n, to) : step_plain<true, false>(v, r, n, to);
    else
        noise ? step_plain<false, true>(v, r, n, to) : step_plain<false, false>(v, r, n, to);
}

// The same without the noise.
template <class C>
static void mean_plain(const C* const* v, const Row<C>& r, int64_t n, C* to) {
    r.clip_mode ? step_plain<true, false>(v, r, n, to) : step_plain<false, false>(v, r, n, to);
}

// A plain row with noise, and the terms of its log-probability. Where they are of one sample, those with
// equal i mod PARTIALS are added in order, as the sum of the sample would (sums.h), without a pass of their own.
template <bool CLIP, class C>
static void plain_scored(const C* const* v, const Row<C>& r, C inverse, int64_t n, bool one, C* to, C* terms) {
    const C *x = v[X], *out = v[OUT], *z = v[Z];
    const C from_x = r.x0.coefficient[0], from_out = r.x0.coefficient[1], bound = r.clip_bound;
    const C* c = r.outputs[0].coefficient;
    const C on_x = c[0], on_x0 = c[1], on_z = c[2];
    auto term = [&](int64_t i) {
        C x0 = ((C)0 + from_x * x[i]) + from_out * out[i];
        if (CLIP) x0 = held(x0, bound);
        const C mean = ((C)0 + on_x * x[i]) + on_x0 * x0, drawn = mean + on_z * z[i];
        to[i] = drawn;
        return log_prob_term(drawn - mean, inverse);
    };
    const int64_t first = one && n > PARTIALS ? PARTIALS : n;
    FD_SIMD
    for (int64_t i = 0; i < first; ++i) terms[i] = term(i);
    int64_t row = first;
    for (; row + PARTIALS <= n; row += PARTIALS) {
        FD_SIMD
        for (int64_t i = 0; i < PARTIALS; ++i) terms[i] += term(row + i);
    }
    for (int64_t i = row; i < n; ++i) terms[i - row] += term(i);
}

// z * exp(0.5*logvar), logvar interpolated between lo and hi by v in [-1, 1]
template <class C>
static void scale_noise(const C* z, const C* v, C lo, C hi, int64_t n, C* to) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = z[i] * exponential((C)0.5 * interpolated(lo, hi, v[i]));
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

// (c - u) + momentum * memory, of which the memory is not read where the momentum is 0
template <class C>
static void difference(const C* cond, const C* uncond, C momentum, const C* memory, int64_t n, C* to) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = cond[i] - uncond[i];
    if (momentum != 0) add_scaled(to, momentum, memory, n, to);
}

template <class C>
static void scale(const C* v, C k, int64_t n, C* to) {
    FD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = k * v[i];
}

}  // namespace fastdiff::FD_LEVEL
