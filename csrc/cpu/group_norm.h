// The sums of group_norm_silu: blocks of 64 positions by 16 channels, sums over their rows and columns
// in a fixed order, partial sums in float64. The order is that of kernels/README.md section 12 at any
// vector width.
#pragma once

#include "convert.h"
#include "kernels.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {


constexpr int64_t POSITIONS = FD_POSITIONS;
constexpr int64_t SIDE = 16;                  // channels of a block; partial sums of section 12
constexpr int64_t WIDE = 32;                  // fewest channels of a piece
constexpr int64_t COLUMNS = 8;                // blocks next to each other in a strip, whose rows are contiguous
constexpr int64_t STRIP = COLUMNS * SIDE;
constexpr int64_t SIZE = POSITIONS * SIDE;
constexpr int64_t MOST = STRIP;               // most groups of a piece

static_assert(SIZE == BLOCK, "a block is a tile");

template <class C>
struct LanesOf;
template <>
struct LanesOf<float> {
    typedef float Type __attribute__((vector_size(FD_WIDTH)));
};
template <>
struct LanesOf<double> {
    typedef double Type __attribute__((vector_size(FD_WIDTH)));
};
template <class C>
using Lanes = typename LanesOf<C>::Type;
template <class C>
constexpr int64_t LANES = FD_WIDTH / sizeof(C);

// Partial sums J, J + 2*HALF …: folded by halves, depth first, so few are live at a time.
template <int64_t J, int64_t STEP, class Partial>
static inline __attribute__((always_inline)) auto folded(const Partial& partial) {
    if constexpr (STEP == SIDE)
        return partial(J);
    else
        return folded<J, 2 * STEP>(partial) + folded<J + STEP, 2 * STEP>(partial);
}

// Sums term(row) over the rows of a block: row i is added to partial sum i mod 16, in order.
template <class C, class Term>
static inline __attribute__((always_inline)) Lanes<C> sum_rows(int64_t rows, const Term& term) {
    if (rows == POSITIONS)
        return folded<0, 1>([&](int64_t j) __attribute__((always_inline)) {
            return ((term(j) + term(j + SIDE)) + term(j + 2 * SIDE)) + term(j + 3 * SIDE);
        });
    return folded<0, 1>([&](int64_t j) __attribute__((always_inline)) {
        Lanes<C> sum = {};
        for (int64_t row = j; row < rows; row += SIDE) sum += term(row);
        return sum;
    });
}

template <class C>
static inline Lanes<C> lanes_at(const C* from) {
    Lanes<C> v;
    memcpy(&v, from, sizeof v);
    return v;
}

// Sums the n terms of one row in the same way.
template <class C, class Term>
static inline __attribute__((always_inline)) C sum_row(const C* row, int64_t n, const Term& term) {
    alignas(64) C part[SIDE];
    for (int64_t j = 0; j < SIDE; j += LANES<C>) {
        Lanes<C> sum = {};
        for (int64_t i = j; i + LANES<C> <= n; i += SIDE) sum += term(lanes_at(row + i));
        memcpy(part + j, &sum, sizeof sum);
    }
    for (int64_t i = n - n % LANES<C>; i < n; ++i) part[i % SIDE] += term(Lanes<C>{} + row[i])[0];
    return folded<0, 1>([&](int64_t j) __attribute__((always_inline)) { return part[j]; });
}

// Partial sums in float64, for N values at a time.
template <int64_t N>
struct Partials {
    double v[SIDE][N];

    void clear() { memset(v, 0, sizeof v); }
    // leaves the sums in v[0]
    const double* fold() {
        for (int64_t half = SIDE / 2; half; half /= 2)
            for (int64_t j = 0; j < half; ++j) {
                FD_SIMD
                for (int64_t k = 0; k < N; ++k) v[j][k] += v[j + half][k];
            }
        return v[0];
    }
};

// The float64 sums of a group while its channels are added in order: distances to the first channel's
// mean.
struct Group {
    Partials<1> distance, square;
    double pivot;
};

// u of n positions by SIDE channels: its address and the stride between rows. A row is a position if
// channels are last in memory, else a channel.
template <class C>
struct Rows {
    const C* at;
    int64_t stride;
};

template <class C>
struct Coefficients {
    alignas(64) C mean[SIDE], gain[SIDE], shift[SIDE];
};

// The sums of a block's channels while their chunks are added in order, and then of their groups.
template <class C>
struct Column {
    alignas(64) C first[SIDE], squares[SIDE];
    Partials<SIDE> distance, square;
    Coefficients<C> k;
};

}  // namespace fastdiff::FD_LEVEL
