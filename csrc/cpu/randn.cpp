// randn: out[b, e] = normal(seed[b], id[b], stream, step, e), kernels/README.md section 2.
#include "kernels.h"

#include "convert.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {

namespace {

struct Randn {
    const fd_randn_args& a;

    struct State {
        alignas(64) float normals[BLOCK];
    };

    void operator()(const Tile& t, State& s) const {
        const int64_t n = a.launch.elements;
        float* z = target(a.out, t.flat(n), s.normals);
        draw_tile(a.draw, [&](int64_t) { return a.draw.step; }, t, n, z);
        save(a.out, t.flat(n), t.n(), z);
    }
};

}  // namespace

void randn(const fd_randn_args& args) { for_tiles(args.launch, Randn{args}); }

}  // namespace fastdiff::FD_LEVEL
