// discretized_gaussian_nll: -log of the Gaussian's mass on each pixel's bin, kernels/README.md section 10.
#include "kernels.h"

#include "convert.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct DiscretizedGaussianNll {
    const fd_discretized_gaussian_nll_args& a;

    struct State {
        alignas(64) C x0[BLOCK], mean[BLOCK], log_scale[BLOCK], result[BLOCK], by_mean[BLOCK], by_log_scale[BLOCK];
    };

    void operator()(const Tile& t, State& s) const {
        const int64_t per_sample = a.launch.elements, n = t.n(), first = t.flat(per_sample);
        const C* x0 = load(a.x0, t, per_sample, s.x0);
        const C* mean = load(a.mean, t, per_sample, s.mean);
        const C* log_scale = load(a.log_scale, t, per_sample, s.log_scale);
        if (!a.grad) {
            FD_SIMD
            for (int64_t i = 0; i < n; ++i) s.result[i] = discretized<false>(x0[i], mean[i], log_scale[i]).nll;
            sum_tile(a.launch, t, s.result, a.nll, a.workspace, AS_IT_IS);
            return;
        }
        for (int64_t b = t.b0; b < t.b1; ++b) {
            const C g = ((const C*)a.grad)[b];
            const int64_t end = (b - t.b0 + 1) * t.elements;
            FD_SIMD
            for (int64_t i = end - t.elements; i < end; ++i) {
                const Bin<C> bin = discretized<true>(x0[i], mean[i], log_scale[i]);
                s.by_mean[i] = g * bin.mean;
                s.by_log_scale[i] = g * bin.log_scale;
            }
        }
        if (a.g_mean.data) save(a.g_mean, first, n, s.by_mean);
        if (a.g_log_scale.data) save(a.g_log_scale, first, n, s.by_log_scale);
    }
};

template <class C>
void run(const fd_discretized_gaussian_nll_args& a) {
    if (a.launch.elements) for_tiles(a.launch, DiscretizedGaussianNll<C>{a});
    if (!a.grad) sum_chunks<C>(a.launch, a.nll, a.workspace, AS_IT_IS);
}

}  // namespace

void discretized_gaussian_nll(const fd_discretized_gaussian_nll_args& args) {
    if (args.compute == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
