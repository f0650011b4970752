// fd_contents: pick the level, divide the blocks among threads, add the last part of a block.
#include "contents.h"

#include <string.h>

#include "checks.h"
#include "levels.h"

namespace {

using fastdiff::ContentsKeys;

typedef void (*Kernel)(const unsigned char*, int64_t, const ContentsKeys&, uint64_t*);

const Kernel KERNELS[FD_LEVEL_COUNT] = FD_EVERY_LEVEL(contents);

constexpr int64_t GRAIN = 1 << 12;  // fewest blocks for one more thread: 0.5 MB
constexpr int WORDS = 2 * FD_CONTENTS_LANES;

// splitmix64's output for the state n: bits without a pattern
uint64_t mixed(uint64_t n) {
    uint64_t z = n * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// of the blocks from `block` on
ContentsKeys keys(int64_t block) {
    ContentsKeys k;
    for (int j = 0; j < FD_CONTENTS_LANES; ++j) {
        k.step[j] = mixed(FD_CONTENTS_LANES + j + 1) | 1;
        k.first[j] = mixed(j + 1) + (uint64_t)block * k.step[j];
    }
    return k;
}

}  // namespace

int fd_contents(const void* data, int64_t bytes, uint64_t* digest, int64_t level, int64_t threads) {
    const int64_t best = fd_cpu_level();
    if (level == FD_BEST) level = best;
    if (level < 0 || level > best)
        return fastdiff::fail(FD_VALUE_ERROR, "expected a CPU level in [0, %lld], got %lld.", (long long)best,
                              (long long)level);
    if (bytes < 0) return fastdiff::fail(FD_VALUE_ERROR, "expected bytes >= 0, got %lld.", (long long)bytes);
    const Kernel kernel = KERNELS[level];
    const unsigned char* from = (const unsigned char*)data;
    const int64_t blocks = bytes / fastdiff::CONTENTS_BLOCK, rest = bytes % fastdiff::CONTENTS_BLOCK;
    memset(digest, 0, WORDS * sizeof *digest);
#if defined(_OPENMP)
    threads = threads < blocks / GRAIN ? threads : blocks / GRAIN;
    if (threads > 1) {
        // sums that wrap around: their order does not matter
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (int64_t k = 0; k < threads; ++k) {
            const int64_t begin = blocks * k / threads, end = blocks * (k + 1) / threads;
            uint64_t part[WORDS] = {};
            kernel(from + begin * fastdiff::CONTENTS_BLOCK, end - begin, keys(begin), part);
#pragma omp critical(fd_contents)
            for (int i = 0; i < WORDS; ++i) digest[i] += part[i];
        }
    } else
#endif
        kernel(from, blocks, keys(0), digest);
    if (rest) {
        unsigned char last[fastdiff::CONTENTS_BLOCK] = {};
        memcpy(last, from + blocks * fastdiff::CONTENTS_BLOCK, (size_t)rest);
        kernel(last, 1, keys(blocks), digest);
    }
    return FD_OK;
}
