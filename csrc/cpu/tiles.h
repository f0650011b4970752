// Work in tiles of at most BLOCK elements, whose scratch stays in the first-level cache.
//
// A long sample is divided into blocks; several short samples form one tile. The division depends on
// the sizes only, and no value depends on it, so any number of threads gives the same bits.
#pragma once

#include "fastdiff/ops.h"
#include "noise.h"

namespace fastdiff::FD_LEVEL {

constexpr int64_t BLOCK = 1024;      // a multiple of CHUNK
constexpr int64_t SHORT = 256;       // below it, drawing several samples together wastes fewer lanes
constexpr int64_t GRAIN = 32 * 1024;  // fewest elements for one more thread

static_assert(BLOCK % CHUNK == 0 && BLOCK >= SHORT, "blocks start at whole vectors");

// Elements [e0, e0 + n / samples) of samples [b0, b1): n consecutive elements, all of each sample if there are several.
struct Tile {
    int64_t b0, b1, e0, elements;

    int64_t samples() const { return b1 - b0; }
    int64_t n() const { return samples() * elements; }
    int64_t flat(int64_t per_sample) const { return b0 * per_sample + e0; }
};

template <class Body>
static void for_tiles(const fd_launch& l, Body body) {
    const bool cut = l.elements > BLOCK;
    const int64_t blocks = cut ? (l.elements + BLOCK - 1) / BLOCK : 1;
    const int64_t together = cut ? 1 : BLOCK / l.elements;
    const int64_t tiles = cut ? l.batch * blocks : (l.batch + together - 1) / together;
    int64_t threads = l.batch * l.elements / GRAIN;
    threads = threads < l.threads ? threads : l.threads;
    threads = threads < tiles ? threads : tiles;

    auto range = [&](int64_t first, int64_t last, typename Body::State& state) {
        for (int64_t i = first; i < last; ++i) {
            if (cut) {
                const int64_t b = i / blocks, e0 = i % blocks * BLOCK, left = l.elements - e0;
                body({b, b + 1, e0, left < BLOCK ? left : BLOCK}, state);
            } else {
                const int64_t b0 = i * together, b1 = b0 + together;
                body({b0, b1 < l.batch ? b1 : l.batch, 0, l.elements}, state);
            }
        }
    };
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (int64_t k = 0; k < threads; ++k) {
            typename Body::State state;
            range(tiles * k / threads, tiles * (k + 1) / threads, state);
        }
        return;
    }
#endif
    typename Body::State state;
    range(0, tiles, state);
}

// The tile's normals, float32; sample b is at step_of(b).
template <class StepOf>
static void draw_tile(const fd_noise& d, StepOf step_of, const Tile& t, int64_t per_sample, float* out) {
    if (per_sample < SHORT)
        draw_short(d, step_of, t.b0, t.b1, per_sample, out);
    else
        for (int64_t b = t.b0; b < t.b1; ++b)
            draw_run(d, step_of(b), b, t.e0, t.elements, out + (b - t.b0) * t.elements);
}

}  // namespace fastdiff::FD_LEVEL
