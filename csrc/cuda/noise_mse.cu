// noise_mse: the mean squared error of predicted noise against the regenerated noise, and its gradient,
// kernels/README.md section 8.
#include "sums.h"

namespace fastdiff::FD_LEVEL {

// prediction - eps
template <bool PLAIN, class C>
FD_HD void differences(const fd_noise_mse_args& a, const Tiling& t, const Spot& p, C (&d)[4]) {
    C eps[4];
    load<PLAIN>(a.prediction, {p.b * t.elements + p.e, p.count, t.vector}, d);
    draw(a.draw, a.draw.step, p, eps);
    FD_UNROLL
    for (int i = 0; i < 4; ++i) d[i] = d[i] - eps[i];
}

template <class C, bool PLAIN>
struct NoiseMse {
    fd_noise_mse_args a;
    Tiling t;

    FD_MEMBER C operator()(const Spot& p) const {
        if (p.count == 0) return 0;
        C d[4];
        differences<PLAIN>(a, t, p, d);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) d[i] = d[i] * d[i];
        return added(d, p.count);
    }
};

template <class C, bool LONG, bool PLAIN>
struct NoiseMseGradient {
    fd_noise_mse_args a;
    Tiling t;

    using Shared = None;
    enum { PHASES = 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (p.count == 0) return;
        const double g = ((const C*)a.grad)[p.b], w = a.weight ? (double)((const C*)a.weight)[p.b] : 1.0;
        const C scale = (C)((2 * g * w) / (double)t.elements);
        C d[4];
        differences<PLAIN>(a, t, p, d);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) d[i] = scale * d[i];
        store<PLAIN>(a.g_prediction, {p.b * t.elements + p.e, p.count, t.vector}, d);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_noise_mse(const fd_noise_mse_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l, args->draw)) return status;
    if (l.batch == 0 || (args->grad && l.elements == 0)) return FD_OK;
    const Arrays arrays = Arrays(l).add(args->prediction).add(args->g_prediction);
    const Tiling t = tiling(l, arrays.vector);
    if (args->grad) return over_elements<NoiseMseGradient>(FD_NOISE_MSE, *args, args->prediction.type, t, arrays.plain);
    return sum_elements<NoiseMse>(FD_NOISE_MSE, *args, args->prediction.type, t, arrays.plain, args->loss, args->workspace,
                                  args->weight, l.elements);
}
