// Checks which elements belong to which thread of the CUDA kernels, for tensors of more than 2^31 and 2^32 elements that are
// not allocated. Prints "right" or what is wrong.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "launch.h"

using namespace fastdiff::FD_LEVEL;

static void expect(bool right, const char* what, long long got) {
    if (right) return;
    std::printf("%s: got %lld\n", what, got);
    std::exit(1);
}

int main() {
    // one long sample after another: first and last thread of some blocks
    for (int64_t n : {(int64_t(1) << 31) + 5, (int64_t(1) << 34) - 3}) {
        const Tiling t = tiling({3, n, 0, 0, nullptr, nullptr}, false);
        const Grid g = grid(t);
        expect(t.is_long(), "a long sample has blocks of its own", t.shift);
        expect(g.x == 3 && g.chunks == (n + FD_CHUNK - 1) / FD_CHUNK, "blocks", (long long)g.chunks);
        int64_t covered = 0;
        for (int64_t chunk : {int64_t(0), int64_t(1) << 20, g.chunks / 2, g.chunks - 1, g.chunks})
            for (int thread = 0; thread < g.threads; ++thread) {
                const Spot s = spot<true>(t, {2, chunk}, thread);
                const int64_t e = chunk * FD_CHUNK + 4 * thread, left = n - e;
                expect(s.b == 2 && s.e == e, "first element", (long long)s.e);
                expect(s.count == (left < 0 ? 0 : left > 4 ? 4 : left), "elements", s.count);
                covered += s.count;
            }
        expect(covered == 3 * FD_CHUNK + (n - (g.chunks - 1) * FD_CHUNK), "elements of those blocks", (long long)covered);
    }
    // many short samples
    const int64_t batch = (int64_t(1) << 31) + 7;
    const Tiling t = tiling({batch, 2, 0, 0, nullptr, nullptr}, false);
    const Grid g = grid(t);
    expect(g.x * Tiling::THREADS >= batch && g.chunks == 1, "blocks of short samples", (long long)g.x);
    for (int thread = 0; thread < g.threads; ++thread) {
        const Spot s = spot<false>(t, {g.x - 1, 0}, thread);
        const int64_t b = (g.x - 1) * Tiling::THREADS + thread;
        expect(s.b == b && s.live == (b < batch) && s.count == (b < batch ? 2 : 0), "a short sample", (long long)s.b);
    }
    std::printf("right\n");
}
