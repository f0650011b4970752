// gaussian_kl: 0.5*(expm1x(logvar1 - logvar2) + (mean1 - mean2)²*exp(-logvar2)), kernels/README.md section 9.
#include "kernels.h"

#include "convert.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct GaussianKl {
    const fd_gaussian_kl_args& a;

    struct State {
        alignas(64) C mean1[BLOCK], logvar1[BLOCK], mean2[BLOCK], logvar2[BLOCK];
        alignas(64) C result[BLOCK], by_mean[BLOCK], by_logvar1[BLOCK], by_logvar2[BLOCK];
    };

    void operator()(const Tile& t, State& s) const {
        const int64_t per_sample = a.launch.elements, n = t.n();
        const C* m1 = load(a.mean1, t, per_sample, s.mean1);
        const C* v1 = load(a.logvar1, t, per_sample, s.logvar1);
        const bool two = a.mean2.data != nullptr;
        const C* m2 = two ? load(a.mean2, t, per_sample, s.mean2) : nullptr;
        const C* v2 = two ? load(a.logvar2, t, per_sample, s.logvar2) : nullptr;
        if (a.grad) {
            gradient(t, m1, v1, m2, v2, s);
            return;
        }
        if (two) {
            FD_SIMD
            for (int64_t i = 0; i < n; ++i) s.result[i] = kl_term(v1[i] - v2[i], m1[i] - m2[i], exponential(-v2[i]));
        } else {
            FD_SIMD
            for (int64_t i = 0; i < n; ++i) s.result[i] = kl_term(v1[i], m1[i], (C)1);
        }
        sum_tile(a.launch, t, s.result, a.kl, a.workspace, AS_IT_IS);
    }

    void gradient(const Tile& t, const C* m1, const C* v1, const C* m2, const C* v2, State& s) const {
        const int64_t n = t.n(), first = t.flat(a.launch.elements);
        for (int64_t b = t.b0; b < t.b1; ++b) {
            const C g = ((const C*)a.grad)[b];
            const int64_t begin = (b - t.b0) * t.elements, end = begin + t.elements;
            // two loops, because a branch between N(0, I) and a second Gaussian would not vectorise
            if (m2) {
                FD_SIMD
                for (int64_t i = begin; i < end; ++i) {
                    const KlGradient<C> k = kl_gradient(v1[i] - v2[i], m1[i] - m2[i], exponential(-v2[i]));
                    s.by_mean[i] = g * k.mean1;
                    s.by_logvar1[i] = g * k.logvar1;
                    s.by_logvar2[i] = g * k.logvar2;
                }
            } else {
                FD_SIMD
                for (int64_t i = begin; i < end; ++i) {
                    const KlGradient<C> k = kl_gradient(v1[i], m1[i], (C)1);
                    s.by_mean[i] = g * k.mean1;
                    s.by_logvar1[i] = g * k.logvar1;
                }
            }
        }
        if (a.g_mean1.data) save(a.g_mean1, first, n, s.by_mean);
        if (a.g_logvar1.data) save(a.g_logvar1, first, n, s.by_logvar1);
        if (a.g_logvar2.data) save(a.g_logvar2, first, n, s.by_logvar2);
        if (a.g_mean2.data) {
            scale(s.by_mean, (C)-1, n, s.result);
            save(a.g_mean2, first, n, s.result);
        }
    }

    static void scale(const C* v, C k, int64_t n, C* to) {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) to[i] = k * v[i];
    }
};

template <class C>
void run(const fd_gaussian_kl_args& a) {
    if (a.launch.elements) for_tiles(a.launch, GaussianKl<C>{a});
    if (!a.grad) sum_chunks<C>(a.launch, a.kl, a.workspace, AS_IT_IS);
}

}  // namespace

void gaussian_kl(const fd_gaussian_kl_args& args) {
    if (args.compute == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
