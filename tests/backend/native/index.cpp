// Checks which elements belong to which tile of the CPU kernels, for tensors of more than 2^31 and 2^32 elements that are not
// allocated. Prints "right" or what is wrong.
#define FD_LEVEL baseline
#include "tiles.h"
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace cpu = fastdiff::baseline;

static void expect(bool right, const char* what, long long got) {
    if (right) return;
    std::printf("%s: got %lld\n", what, got);
    std::exit(1);
}

// Tiles of three samples of n elements must follow each other without gap or overlap.
struct Follow {
    int64_t per_sample;
    int64_t* next;

    struct State {};

    void operator()(const cpu::Tile& t, State&) const {
        expect(t.flat(per_sample) == *next, "a tile starts elsewhere", (long long)t.flat(per_sample));
        expect(t.n() > 0 && t.n() <= cpu::BLOCK, "a tile's size", (long long)t.n());
        *next += t.n();
    }
};

int main() {
    for (int64_t n : {(int64_t(1) << 31) + 5, (int64_t(1) << 33) + 1023}) {
        int64_t next = 0;
        cpu::for_tiles({3, n, 0, 1, nullptr, nullptr}, Follow{n, &next});
        expect(next == 3 * n, "elements covered", (long long)next);
    }
    int64_t next = 0;
    cpu::for_tiles({(int64_t(1) << 31) + 7, 2, 0, 1, nullptr, nullptr}, Follow{2, &next});
    expect(next == (int64_t(1) << 32) + 14, "short samples covered", (long long)next);
    std::printf("right\n");
}
