// q_sample: x_t = (alpha*x0) + (sigma*noise), kernels/README.md section 3.
#include "kernels.h"

#include "convert.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct QSample {
    const fd_q_sample_args& a;

    struct State {
        alignas(64) float normals[BLOCK];
        alignas(64) C x0[BLOCK], noise[BLOCK], x_t[BLOCK];
    };

    void operator()(const Tile& t, State& s) const {
        const int64_t elements = a.launch.elements, n = t.n(), first = t.flat(elements);
        const C* z;
        if (a.noise.data) {
            z = load(a.noise, first, n, s.noise);
        } else {
            draw_tile(a.draw, [&](int64_t) { return a.draw.step; }, t, elements, s.normals);
            z = load({s.normals, FD_FLOAT32}, 0, n, s.noise);
        }
        const C* x0 = load(a.x0, first, n, s.x0);
        C* x_t = target(a.x_t, first, s.x_t);
        for (int64_t b = t.b0; b < t.b1; ++b) {
            const int64_t time = a.t ? a.t[b] : b, end = (b - t.b0 + 1) * t.elements;
            const C alpha = (C)a.alpha[time], sigma = (C)a.sigma[time];
            FD_SIMD
            for (int64_t i = end - t.elements; i < end; ++i) x_t[i] = alpha * x0[i] + sigma * z[i];
        }
        save(a.x_t, first, n, x_t);
    }
};

}  // namespace

void q_sample(const fd_q_sample_args& args) {
    if (args.x0.type == FD_FLOAT64)
        for_tiles(args.launch, QSample<double>{args});
    else
        for_tiles(args.launch, QSample<float>{args});
}

}  // namespace fastdiff::FD_LEVEL
