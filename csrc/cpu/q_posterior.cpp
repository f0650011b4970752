// q_posterior: mean = (c0*x0) + (c1*x_t), variance and log-variance of q(x_{t-1} | x_t, x0), kernels/README.md section 5.
#include "kernels.h"

#include "convert.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct QPosterior {
    const fd_q_posterior_args& a;

    struct State {
        alignas(64) C x0[BLOCK], x_t[BLOCK], mean[BLOCK];
    };

    void operator()(const Tile& t, State& s) const {
        const int64_t n = t.n(), first = t.flat(a.launch.elements);
        const C* x0 = load(a.x0, first, n, s.x0);
        const C* x_t = load(a.x_t, first, n, s.x_t);
        C* mean = target(a.mean, first, s.mean);
        for (int64_t b = t.b0; b < t.b1; ++b) {
            const Posterior p = posterior(a.alphas_cumprod, a.t[b]);
            const C on_x0 = (C)p.x0, on_x = (C)p.x;
            const int64_t end = (b - t.b0 + 1) * t.elements;
            FD_SIMD
            for (int64_t i = end - t.elements; i < end; ++i) mean[i] = on_x0 * x0[i] + on_x * x_t[i];
        }
        save(a.mean, first, n, mean);
    }
};

template <class C>
void run(const fd_q_posterior_args& a) {
    for (int64_t b = 0; b < a.launch.batch; ++b) {
        ((C*)a.variance)[b] = (C)posterior(a.alphas_cumprod, a.t[b]).variance;
        ((C*)a.log_variance)[b] = (C)posterior_log_variance(a.alphas_cumprod, a.t[b], a.times);
    }
    if (a.launch.elements) for_tiles(a.launch, QPosterior<C>{a});
}

}  // namespace

void q_posterior(const fd_q_posterior_args& args) {
    if (args.x0.type == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
