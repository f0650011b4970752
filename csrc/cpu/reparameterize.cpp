// reparameterize: z = mean + (exp(0.5*logvar)*eps), eps regenerated in the backward pass, kernels/README.md section 6.
#include "kernels.h"

#include "convert.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct Reparameterize {
    const fd_reparameterize_args& a;

    struct State {
        alignas(64) float normals[BLOCK];
        alignas(64) C mean[BLOCK], logvar[BLOCK], noise[BLOCK], result[BLOCK];
    };

    void operator()(const Tile& t, State& s) const {
        const int64_t n = t.n(), first = t.flat(a.launch.elements);
        if (a.grad.data && !a.g_logvar.data) {
            save(a.g_mean, first, n, load(a.grad, first, n, s.mean));
            return;
        }
        draw_tile(a.draw, [&](int64_t) { return a.draw.step; }, t, a.launch.elements, s.normals);
        const C* eps = load({s.normals, FD_FLOAT32}, 0, n, s.noise);
        const C* logvar = load(a.logvar, first, n, s.logvar);
        if (a.grad.data) {
            const C* g = load(a.grad, first, n, s.mean);
            FD_SIMD
            for (int64_t i = 0; i < n; ++i) s.result[i] = (g[i] * eps[i]) * ((C)0.5 * exponential((C)0.5 * logvar[i]));
            if (a.g_mean.data) save(a.g_mean, first, n, g);
            save(a.g_logvar, first, n, s.result);
            return;
        }
        const C* mean = load(a.mean, first, n, s.mean);
        C* z = target(a.z, first, s.result);
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) z[i] = mean[i] + exponential((C)0.5 * logvar[i]) * eps[i];
        save(a.z, first, n, z);
    }
};

}  // namespace

void reparameterize(const fd_reparameterize_args& args) {
    if ((args.grad.data ? args.grad.type : args.mean.type) == FD_FLOAT64)
        for_tiles(args.launch, Reparameterize<double>{args});
    else
        for_tiles(args.launch, Reparameterize<float>{args});
}

}  // namespace fastdiff::FD_LEVEL
