// noise_mse: w * mean (prediction - eps)² of every sample, eps regenerated, kernels/README.md section 8.
#include "kernels.h"

#include "convert.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct NoiseMse {
    const fd_noise_mse_args& a;

    struct State {
        alignas(64) float normals[BLOCK];
        alignas(64) C prediction[BLOCK], noise[BLOCK], result[BLOCK];
    };

    double weight(int64_t b) const { return a.weight ? (double)((const C*)a.weight)[b] : 1.0; }
    double finish(int64_t b, double total) const { return weight(b) * (total / (double)a.launch.elements); }

    void operator()(const Tile& t, State& s) const {
        const int64_t n = t.n(), first = t.flat(a.launch.elements);
        draw_tile(a.draw, [&](int64_t) { return a.draw.step; }, t, a.launch.elements, s.normals);
        const C* eps = load({s.normals, FD_FLOAT32}, 0, n, s.noise);
        const C* prediction = load(a.prediction, first, n, s.prediction);
        if (!a.grad) {
            FD_SIMD
            for (int64_t i = 0; i < n; ++i) {
                const C d = prediction[i] - eps[i];
                s.result[i] = d * d;
            }
            sum_tile(a.launch, t, s.result, a.loss, a.workspace, [&](int64_t b, double v) { return finish(b, v); });
            return;
        }
        for (int64_t b = t.b0; b < t.b1; ++b) {
            const C scale = (C)(2 * (double)((const C*)a.grad)[b] * weight(b) / (double)a.launch.elements);
            const int64_t end = (b - t.b0 + 1) * t.elements;
            FD_SIMD
            for (int64_t i = end - t.elements; i < end; ++i) s.result[i] = scale * (prediction[i] - eps[i]);
        }
        save(a.g_prediction, first, n, s.result);
    }
};

template <class C>
void run(const fd_noise_mse_args& a) {
    const NoiseMse<C> body{a};
    if (a.launch.elements) for_tiles(a.launch, body);
    if (!a.grad) sum_chunks<C>(a.launch, a.loss, a.workspace, [&](int64_t b, double v) { return body.finish(b, v); });
}

}  // namespace

void noise_mse(const fd_noise_mse_args& args) {
    if (args.prediction.type == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
