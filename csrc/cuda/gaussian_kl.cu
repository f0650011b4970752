// gaussian_kl: KL between diagonal Gaussians in nats, and its gradients, kernels/README.md section 9.
#include "sums.h"

namespace fastdiff::FD_LEVEL {

// d = logvar1 - logvar2, m = mean1 - mean2, inverse2 = exp(-logvar2)
template <class C>
struct Apart {
    C d[4], m[4], inverse2[4];
};

template <bool PLAIN, class C>
FD_HD void load_apart(const fd_gaussian_kl_args& a, const Tiling& t, const Spot& p, Apart<C>& to) {
    load<PLAIN>(a.mean1, p, t.vector, to.m);
    load<PLAIN>(a.logvar1, p, t.vector, to.d);
    C mean2[4] = {}, logvar2[4] = {};
    if (a.mean2.data) load<PLAIN>(a.mean2, p, t.vector, mean2);
    if (a.logvar2.data) load<PLAIN>(a.logvar2, p, t.vector, logvar2);
    FD_UNROLL
    for (int i = 0; i < 4; ++i) {
        to.m[i] = to.m[i] - mean2[i];
        to.d[i] = to.d[i] - logvar2[i];
        to.inverse2[i] = a.logvar2.data ? exponential(-logvar2[i]) : (C)1;
    }
}

template <class C, bool PLAIN>
struct GaussianKl {
    fd_gaussian_kl_args a;
    Tiling t;

    FD_MEMBER C operator()(const Spot& p) const {
        if (p.count == 0) return 0;
        Apart<C> v;
        load_apart<PLAIN>(a, t, p, v);
        C terms[4];
        FD_UNROLL
        for (int i = 0; i < 4; ++i) terms[i] = kl_term(v.d[i], v.m[i], v.inverse2[i]);
        return added(terms, p.count);
    }
};

template <class C, bool LONG, bool PLAIN>
struct GaussianKlGradient {
    fd_gaussian_kl_args a;
    Tiling t;

    using Shared = None;
    enum { PHASES = 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (p.count == 0) return;
        const C g = ((const C*)a.grad)[p.b];
        Apart<C> v;
        load_apart<PLAIN>(a, t, p, v);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) {
            const KlGradient<C> by = kl_gradient(v.d[i], v.m[i], v.inverse2[i]);
            v.m[i] = g * by.mean1;
            v.d[i] = g * by.logvar1;
            v.inverse2[i] = g * by.logvar2;
        }
        const Span at = {p.b * t.elements + p.e, p.count, t.vector};
        if (a.g_mean1.data) store<PLAIN>(a.g_mean1, at, v.m);
        if (a.g_logvar1.data) store<PLAIN>(a.g_logvar1, at, v.d);
        if (a.g_logvar2.data) store<PLAIN>(a.g_logvar2, at, v.inverse2);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) v.m[i] = -v.m[i];
        if (a.g_mean2.data) store<PLAIN>(a.g_mean2, at, v.m);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_gaussian_kl(const fd_gaussian_kl_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l)) return status;
    if (l.batch == 0 || (args->grad && l.elements == 0)) return FD_OK;
    const Arrays arrays = Arrays(l)
                              .add(args->mean1).add(args->logvar1).add(args->mean2).add(args->logvar2)
                              .add(args->g_mean1).add(args->g_logvar1).add(args->g_mean2).add(args->g_logvar2);
    const Tiling t = tiling(l, arrays.vector);
    if (args->grad) return over_elements<GaussianKlGradient>(FD_GAUSSIAN_KL, *args, args->compute, t, arrays.plain);
    return sum_elements<GaussianKl>(FD_GAUSSIAN_KL, *args, args->compute, t, arrays.plain, args->kl, args->workspace);
}
