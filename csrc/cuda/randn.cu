// randn: out[b, e] = normal(seed[b], id[b], stream, step, e), kernels/README.md section 2.
#include "memory.h"

namespace fastdiff::FD_LEVEL {

template <class C, bool LONG, bool PLAIN>
struct Randn {
    fd_randn_args a;
    Tiling t;

    using Shared = None;
    enum { PHASES = 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (p.count == 0) return;
        C z[4];
        draw(a.draw, a.draw.step, p, z);
        store<PLAIN>(a.out, {p.b * t.elements + p.e, p.count, t.vector}, z);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_randn(const fd_randn_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l, args->draw)) return status;
    if (l.batch == 0 || l.elements == 0) return FD_OK;
    const Arrays arrays = Arrays(l).add(args->out);
    return over_elements<Randn>(FD_RANDN, *args, args->out.type, tiling(l, arrays.vector), arrays.plain);
}
