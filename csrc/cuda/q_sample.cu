// q_sample: x_t = (alpha*x0) + (sigma*noise), kernels/README.md section 3.
#include "memory.h"

namespace fastdiff::FD_LEVEL {

template <class C, bool LONG, bool PLAIN>
struct QSample {
    fd_q_sample_args a;
    Tiling t;

    using Shared = None;
    enum { PHASES = 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (p.count == 0) return;
        const int64_t time = a.t ? a.t[p.b] : p.b;
        const bool valid = !a.t || (time >= 0 && time < a.times);
        if (!valid && p.first()) report(a.launch, FD_Q_SAMPLE);
        const C alpha = valid ? (C)a.alpha[time] : (C)NAN, sigma = valid ? (C)a.sigma[time] : (C)NAN;
        const Span at = {p.b * t.elements + p.e, p.count, t.vector};
        C x0[4], z[4];
        load<PLAIN>(a.x0, at, x0);
        if (a.noise.data)
            load<PLAIN>(a.noise, at, z);
        else
            draw(a.draw, a.draw.step, p, z);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) x0[i] = alpha * x0[i] + sigma * z[i];
        store<PLAIN>(a.x_t, at, x0);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_q_sample(const fd_q_sample_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l, args->draw)) return status;
    if (l.batch == 0 || l.elements == 0) return FD_OK;
    const Arrays arrays = Arrays(l).add(args->x0).add(args->x_t).add(args->noise);
    return over_elements<QSample>(FD_Q_SAMPLE, *args, args->x0.type, tiling(l, arrays.vector), arrays.plain);
}
