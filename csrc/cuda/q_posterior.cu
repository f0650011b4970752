// q_posterior: mean, variance and log-variance of q(x_{t-1} | x_t, x0), kernels/README.md section 5.
#include "memory.h"

namespace fastdiff::FD_LEVEL {

template <class C, bool LONG, bool PLAIN>
struct QPosterior {
    fd_q_posterior_args a;
    Tiling t;

    struct Shared {
        C x0, x;
    };
    // a block with one sample computes quotients and roots once, in float64; otherwise every thread does
    enum { PHASES = LONG ? 2 : 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (!p.live) return;
        Shared c;
        if (LONG && k == 0) {
            if (thread == 0) s = sample(p);
            return;
        }
        c = LONG ? s : sample(p);
        if (p.count == 0) return;
        const Span at = {p.b * t.elements + p.e, p.count, t.vector};
        C x0[4], x_t[4];
        load<PLAIN>(a.x0, at, x0);
        load<PLAIN>(a.x_t, at, x_t);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) x0[i] = c.x0 * x0[i] + c.x * x_t[i];
        store<PLAIN>(a.mean, at, x0);
    }

    FD_MEMBER Shared sample(const Spot& p) const {
        const int64_t time = a.t[p.b];
        const bool valid = time >= 0 && time < a.times;
        const Posterior q = valid ? posterior(a.alphas_cumprod, time) : Posterior{NAN, NAN, NAN};
        if (p.first()) {
            if (!valid) report(a.launch, FD_Q_POSTERIOR);
            if (a.variance) ((C*)a.variance)[p.b] = (C)q.variance;
            if (a.log_variance)
                ((C*)a.log_variance)[p.b] = (C)(valid ? posterior_log_variance(a.alphas_cumprod, time, a.times) : NAN);
        }
        return {(C)q.x0, (C)q.x};
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_q_posterior(const fd_q_posterior_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l)) return status;
    if (l.batch == 0) return FD_OK;
    const Arrays arrays = Arrays(l).add(args->x0).add(args->x_t).add(args->mean);
    return over_elements<QPosterior>(FD_Q_POSTERIOR, *args, args->x0.type, tiling(l, arrays.vector), arrays.plain);
}
