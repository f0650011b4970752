// Sums over a sample, kernels/README.md section 7: the same bits at any batch size, thread count and level.
//
// The terms of a tile are in a block. Term i of a chunk is added to partial sum i mod 64 in order, and
// the partial sums are folded by halves; missing partial sums are left out. Chunks are added in order
// in float64.
#pragma once

#include "tiles.h"

namespace fastdiff::FD_LEVEL {

constexpr int64_t PARTIALS = 64;

static_assert(BLOCK == FD_CHUNK, "a long sample's tile is one chunk");

static inline int64_t chunks(const fd_launch& l) { return (l.elements + FD_CHUNK - 1) / FD_CHUNK; }

// The sum of n <= 1,024 terms; they are overwritten.
template <class C>
static C fold(C* terms, int64_t n) {
    if (n > PARTIALS) {
        int64_t row = PARTIALS;
        for (; row + PARTIALS <= n; row += PARTIALS) {
            FD_SIMD
            for (int64_t i = 0; i < PARTIALS; ++i) terms[i] += terms[row + i];
        }
        for (int64_t i = row; i < n; ++i) terms[i - row] += terms[i];
        n = PARTIALS;
    }
    for (int64_t half = PARTIALS / 2; half; half /= 2) {
        if (half >= n) continue;
        FD_SIMD
        for (int64_t i = 0; i < n - half; ++i) terms[i] += terms[half + i];
        n = half;
    }
    return terms[0];
}

// Sums the terms of the tile's samples into `out` [batch], or with several chunks into `workspace`
// [batch, chunks].
template <class C, class Finish>
static void sum_tile(const fd_launch& l, const Tile& t, C* terms, void* out, void* workspace, Finish finish) {
    if (l.elements > FD_CHUNK) {
        ((C*)workspace)[t.b0 * chunks(l) + t.e0 / FD_CHUNK] = fold(terms, t.elements);
        return;
    }
    for (int64_t b = t.b0; b < t.b1; ++b)
        ((C*)out)[b] = (C)finish(b, (double)fold(terms + (b - t.b0) * t.elements, t.elements));
}

// The rest of the sum where samples have several chunks, or none.
template <class C, class Finish>
static void sum_chunks(const fd_launch& l, void* out, const void* workspace, Finish finish) {
    if (l.elements != 0 && l.elements <= FD_CHUNK) return;
    for (int64_t b = 0; b < l.batch; ++b) {
        double total = 0;
        for (int64_t i = 0; i < chunks(l); ++i) total += (double)((const C*)workspace)[b * chunks(l) + i];
        ((C*)out)[b] = (C)(l.elements ? finish(b, total) : 0.0);
    }
}

// A view's values for a tile, in the compute type. A value for a whole sample is repeated.
template <class C>
static const C* load(const fd_view& v, const Tile& t, int64_t per_sample, C* scratch) {
    const fd_input flat = {v.data, v.type};
    if (v.element_stride == 1 && (v.sample_stride == per_sample || t.samples() == 1))
        return load(flat, t.b0 * v.sample_stride + t.e0, t.n(), scratch);
    for (int64_t b = t.b0; b < t.b1; ++b) {
        C* to = scratch + (b - t.b0) * t.elements;
        if (v.element_stride == 1) {
            save({to, TYPE_OF<C>}, 0, t.elements, load(flat, b * v.sample_stride + t.e0, t.elements, to));
        } else {
            C one;
            const C value = *load(flat, b * v.sample_stride, 1, &one);
            for (int64_t i = 0; i < t.elements; ++i) to[i] = value;
        }
    }
    return scratch;
}

static const auto AS_IT_IS = [](int64_t, double total) { return total; };

}  // namespace fastdiff::FD_LEVEL
