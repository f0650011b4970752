// discretized_gaussian_nll: minus the log of a Gaussian's mass on a pixel's bin, and its gradients, kernels/README.md
// section 10.
#include "sums.h"

namespace fastdiff::FD_LEVEL {

template <class C>
struct Pixels {
    C x0[4], mean[4], log_scale[4];
};

template <bool PLAIN, class C>
FD_HD void load_pixels(const fd_discretized_gaussian_nll_args& a, const Tiling& t, const Spot& p, Pixels<C>& to) {
    load<PLAIN>(a.x0, p, t.vector, to.x0);
    load<PLAIN>(a.mean, p, t.vector, to.mean);
    load<PLAIN>(a.log_scale, p, t.vector, to.log_scale);
}

template <class C, bool PLAIN>
struct DiscretizedGaussianNll {
    fd_discretized_gaussian_nll_args a;
    Tiling t;

    FD_MEMBER C operator()(const Spot& p) const {
        if (p.count == 0) return 0;
        Pixels<C> v;
        load_pixels<PLAIN>(a, t, p, v);
        C terms[4];
        FD_UNROLL
        for (int i = 0; i < 4; ++i) terms[i] = discretized<false>(v.x0[i], v.mean[i], v.log_scale[i]).nll;
        return added(terms, p.count);
    }
};

template <class C, bool LONG, bool PLAIN>
struct DiscretizedGaussianNllGradient {
    fd_discretized_gaussian_nll_args a;
    Tiling t;

    using Shared = None;
    enum { PHASES = 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (p.count == 0) return;
        const C g = ((const C*)a.grad)[p.b];
        Pixels<C> v;
        load_pixels<PLAIN>(a, t, p, v);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) {
            const Bin<C> bin = discretized<true>(v.x0[i], v.mean[i], v.log_scale[i]);
            v.mean[i] = g * bin.mean;
            v.log_scale[i] = g * bin.log_scale;
        }
        const Span at = {p.b * t.elements + p.e, p.count, t.vector};
        if (a.g_mean.data) store<PLAIN>(a.g_mean, at, v.mean);
        if (a.g_log_scale.data) store<PLAIN>(a.g_log_scale, at, v.log_scale);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_discretized_gaussian_nll(const fd_discretized_gaussian_nll_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    const int op = FD_DISCRETIZED_GAUSSIAN_NLL;
    if (int status = check(l)) return status;
    if (l.batch == 0 || (args->grad && l.elements == 0)) return FD_OK;
    const Arrays arrays = Arrays(l).add(args->x0).add(args->mean).add(args->log_scale).add(args->g_mean).add(args->g_log_scale);
    const Tiling t = tiling(l, arrays.vector);
    if (args->grad) return over_elements<DiscretizedGaussianNllGradient>(op, *args, args->compute, t, arrays.plain);
    return sum_elements<DiscretizedGaussianNll>(op, *args, args->compute, t, arrays.plain, args->nll, args->workspace);
}
