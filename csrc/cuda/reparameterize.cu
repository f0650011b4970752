// reparameterize: z = mean + (exp(0.5*logvar)*eps) and its gradients, kernels/README.md section 6. The backward pass
// draws eps again.
#include "memory.h"

namespace fastdiff::FD_LEVEL {

template <class C, bool LONG, bool PLAIN>
struct Reparameterize {
    fd_reparameterize_args a;
    Tiling t;

    using Shared = None;
    enum { PHASES = 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (p.count == 0) return;
        const Span at = {p.b * t.elements + p.e, p.count, t.vector};
        if (a.grad.data)
            backward(p, at);
        else
            forward(p, at);
    }

    FD_MEMBER void forward(const Spot& p, const Span& at) const {
        C mean[4], logvar[4], eps[4];
        load<PLAIN>(a.mean, at, mean);
        load<PLAIN>(a.logvar, at, logvar);
        draw(a.draw, a.draw.step, p, eps);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) mean[i] = mean[i] + exponential((C)0.5 * logvar[i]) * eps[i];
        store<PLAIN>(a.z, at, mean);
    }

    FD_MEMBER void backward(const Spot& p, const Span& at) const {
        C g[4], logvar[4], eps[4];
        load<PLAIN>(a.grad, at, g);
        if (a.g_logvar.data) {
            load<PLAIN>(a.logvar, at, logvar);
            draw(a.draw, a.draw.step, p, eps);
            FD_UNROLL
            for (int i = 0; i < 4; ++i) eps[i] = (g[i] * eps[i]) * ((C)0.5 * exponential((C)0.5 * logvar[i]));
            store<PLAIN>(a.g_logvar, at, eps);
        }
        if (a.g_mean.data) store<PLAIN>(a.g_mean, at, g);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_reparameterize(const fd_reparameterize_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l, args->draw)) return status;
    if (l.batch == 0 || l.elements == 0) return FD_OK;
    const Arrays arrays =
        Arrays(l).add(args->mean).add(args->logvar).add(args->z).add(args->grad).add(args->g_mean).add(args->g_logvar);
    const int64_t type = args->grad.data ? args->grad.type : args->mean.type;
    return over_elements<Reparameterize>(FD_REPARAMETERIZE, *args, type, tiling(l, arrays.vector), arrays.plain);
}
