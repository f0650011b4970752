// fd_winograd: check the arguments, pick the level, run the three passes over blocks of tiles.
#include "winograd.h"

#include "checks.h"
#include "levels.h"

namespace {

using fastdiff::fail;
using fastdiff::Winograd;

typedef void (*Pass)(const Winograd&, int64_t, int64_t);

const Pass INPUT[FD_LEVEL_COUNT] = FD_EVERY_LEVEL(winograd_input);
const Pass PRODUCT[FD_LEVEL_COUNT] = FD_EVERY_LEVEL(winograd_product);
const Pass OUTPUT[FD_LEVEL_COUNT] = FD_EVERY_LEVEL(winograd_output);
const Pass GRADIENT[FD_LEVEL_COUNT] = FD_EVERY_LEVEL(winograd_gradient);
const Pass WEIGHT[FD_LEVEL_COUNT] = FD_EVERY_LEVEL(winograd_weight);

constexpr int64_t GRAIN = 1 << 20;  // fewest multiplications for one more thread

// Every division gives the same bits: one thread computes a tile, or an element of the product, in one
// order.
void over(Pass pass, const Winograd& w, int64_t units, int64_t threads) {
    threads = threads < units ? threads : units;
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (int64_t k = 0; k < threads; ++k) pass(w, units * k / threads, units * (k + 1) / threads);
        return;
    }
#endif
    pass(w, 0, units);
}

int64_t best_level() {
    const int64_t level = fd_cpu_level();
#if defined(FD_HAVE_AVX2)
    if (level == FD_AVX2 && !__builtin_cpu_supports("fma")) return FD_BASELINE;
#endif
    return level;
}

}  // namespace

int64_t fd_winograd_version(void) { return FD_WINOGRAD_VERSION; }

int64_t fd_winograd_workspace(int64_t channels, int64_t out_channels, int64_t block) {
    const int64_t width = Winograd::panels(out_channels) * FD_WINOGRAD_PANEL;
    return FD_WINOGRAD_POSITIONS * (Winograd::stride(block * channels) + Winograd::stride(block * width));
}

static int run(const fd_winograd_args& a, bool by_weight) {
    const int64_t best = best_level(), level = a.level == FD_BEST ? best : a.level;
    if (level < 0 || level > best)
        return fail(FD_VALUE_ERROR, "expected a CPU level in [0, %lld], got %lld.", (long long)best, (long long)level);
    if (a.batch < 0 || a.height < 1 || a.width < 1 || a.channels < 1 || a.out_channels < 1)
        return fail(FD_VALUE_ERROR, "expected images of at least one pixel and channel, got %lld x %lld x %lld.",
                    (long long)a.height, (long long)a.width, (long long)a.channels);
    if (a.block < 1) return fail(FD_VALUE_ERROR, "expected a block of at least 1 tile, got %lld.", (long long)a.block);
    Winograd w{a, 0, 0};
    const int64_t all = a.batch * w.down() * w.across();
    for (; w.first < all; w.first += a.block) {
        w.tiles = all - w.first < a.block ? all - w.first : a.block;
        int64_t threads = w.tiles * FD_WINOGRAD_POSITIONS * a.channels * w.width() / GRAIN;
        threads = threads < 1 ? 1 : threads < a.threads ? threads : a.threads;
        over(INPUT[level], w, w.tiles, threads);
        const int64_t units = FD_WINOGRAD_POSITIONS * Winograd::panels(a.out_channels);
        if (by_weight) {
            over(GRADIENT[level], w, w.tiles, threads);
            over(WEIGHT[level], w, units, threads);
        } else {
            over(PRODUCT[level], w, units, threads);
            over(OUTPUT[level], w, w.tiles, threads);
        }
    }
    return FD_OK;
}

int fd_winograd(const fd_winograd_args* args) { return run(*args, false); }

int fd_winograd_weight(const fd_winograd_args* args) { return run(*args, true); }
