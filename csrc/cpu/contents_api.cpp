// fd_contents and fd_contents_changed: pick the level, divide the blocks among threads, add the last part
// of a block.
#include "contents.h"

#include <string.h>

#include "checks.h"
#include "levels.h"

namespace {

using fastdiff::CONTENTS_BLOCK;
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

int check(const fd_contents_args& a) {
    const int64_t best = fd_cpu_level();
    if (a.level < FD_BEST || a.level > best)
        return fastdiff::fail(FD_VALUE_ERROR, "expected a CPU level in [0, %lld], got %lld.", (long long)best,
                              (long long)a.level);
    for (int64_t i = 0; i < a.count; ++i)
        if (a.bytes[i] < 0)
            return fastdiff::fail(FD_VALUE_ERROR, "expected bytes >= 0, got %lld.", (long long)a.bytes[i]);
    return FD_OK;
}

void digest_of(const fd_contents_args& a, int64_t i, uint64_t* digest) {
    const Kernel kernel = KERNELS[a.level == FD_BEST ? fd_cpu_level() : a.level];
    const unsigned char* from = (const unsigned char*)a.data[i];
    const int64_t blocks = a.bytes[i] / CONTENTS_BLOCK, rest = a.bytes[i] % CONTENTS_BLOCK;
    memset(digest, 0, WORDS * sizeof *digest);
#if defined(_OPENMP)
    const int64_t threads = a.threads < blocks / GRAIN ? a.threads : blocks / GRAIN;
    if (threads > 1) {
        // sums that wrap around: their order does not matter
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (int64_t k = 0; k < threads; ++k) {
            const int64_t begin = blocks * k / threads, end = blocks * (k + 1) / threads;
            uint64_t part[WORDS] = {};
            kernel(from + begin * CONTENTS_BLOCK, end - begin, keys(begin), part);
#pragma omp critical(fd_contents)
            for (int j = 0; j < WORDS; ++j) digest[j] += part[j];
        }
    } else
#endif
        kernel(from, blocks, keys(0), digest);
    if (rest) {
        unsigned char last[CONTENTS_BLOCK] = {};
        memcpy(last, from + blocks * CONTENTS_BLOCK, (size_t)rest);
        kernel(last, 1, keys(blocks), digest);
    }
}

}  // namespace

int fd_contents(const fd_contents_args* args, uint64_t* digests) {
    const int status = check(*args);
    if (status != FD_OK) return status;
    for (int64_t i = 0; i < args->count; ++i) digest_of(*args, i, digests + i * WORDS);
    return FD_OK;
}

int fd_contents_changed(const fd_contents_args* args, const uint64_t* known, int64_t* changed) {
    const int status = check(*args);
    if (status != FD_OK) return status;
    *changed = 0;
    for (int64_t i = 0; i < args->count; ++i) {
        uint64_t found[WORDS];
        digest_of(*args, i, found);
        *changed += memcmp(found, known + i * WORDS, sizeof found) != 0;
    }
    return FD_OK;
}
