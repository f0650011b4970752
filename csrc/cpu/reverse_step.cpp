// reverse_step: one row of a plan for every sample, kernels/README.md section 4.
//
// A tile's samples that share a row are carried out together: operands into the compute type, the network output through
// guidance and gradient, x0 and its clip, the noise, then one pass per output. Results that another output may still
// read stay in scratch until all are there, so outputs may be the inputs' memory.
#include "kernels.h"

#include "combine.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct ReverseStep {
    const fd_reverse_step_args& a;

    struct State {
        Rows<C> rows;
        int64_t drawn_to;  // the tile's samples before this one have their normals
        alignas(64) float normals[BLOCK];
        alignas(64) C loaded[OPERANDS][BLOCK], uncond[BLOCK], guided[BLOCK], gradient[BLOCK], variance[BLOCK];
        alignas(64) C fresh[OUTPUTS][BLOCK], scaled[BLOCK];
    };

    static constexpr int64_t TYPE = sizeof(C) == 8 ? FD_FLOAT64 : FD_FLOAT32;

    void operator()(const Tile& t, State& s) const {
        s.drawn_to = t.b0;
        for (int64_t b0 = t.b0, b1; b0 < t.b1; b0 = b1) {
            for (b1 = b0 + 1; b1 < t.b1 && a.row[b1] == a.row[b0];) ++b1;
            run(t, {b0, b1, t.e0, t.elements}, s.rows.get(a.table, a.row[b0]), s);
        }
    }

    void run(const Tile& whole, const Tile& t, const Row<C>& r, State& s) const {
        const int64_t n = t.n(), first = t.flat(a.launch.elements);
        const C* v[OPERANDS] = {};
        v[X] = load(a.x_t, a.x_type, first, n, s.loaded[X]);
        for (int i = 0; i < SLOTS; ++i)
            if (r.reads[S1 + i]) v[S1 + i] = (const C*)a.slots + slot(i) + first;
        const bool wants_x0 = a.x0_out || r.reads[X0];
        if (a.model_output) v[OUT] = output(t, r, s);
        if (wants_x0) {
            combine(v, r.x0, n, s.loaded[X0]);
            if (r.clips) clip(s.loaded[X0], r.clip_bound, n);
            v[X0] = s.loaded[X0];
        }
        if (r.reads[Z]) v[Z] = noise(whole, t, r, s);

        C* made[OUTPUTS] = {};
        const int slots_out = a.slots_out ? (int)a.slots_out_count : 0;
        for (int i = 0; i < slots_out; ++i) {
            const Combination<C>& c = r.outputs[1 + i];
            if (c.count) combine(v, c, n, made[1 + i] = s.fresh[1 + i]);
        }
        made[0] = target(a.x_s, a.x_s_type, first, s.fresh[0]);
        combine(v, r.outputs[0], n, made[0]);

        save(a.x_s, a.x_s_type, first, n, made[0]);
        for (int i = 0; i < slots_out; ++i) {
            C* to = (C*)a.slots_out + slot(i) + first;
            if (made[1 + i])
                memcpy(to, made[1 + i], n * sizeof(C));
            else if (a.slots != a.slots_out && i < a.slot_count)
                memcpy(to, (const C*)a.slots + slot(i) + first, n * sizeof(C));
        }
        if (a.x0_out) save(a.x0_out, a.x0_type, first, n, v[X0]);
        if (a.input_out) {
            C* scaled = target(a.input_out, a.input_type, first, s.scaled);
            scale(made[0], r.next_scale, n, scaled);
            for (int64_t copy = 0; copy < a.input_copies; ++copy)
                save(a.input_out, a.input_type, copy * a.launch.batch * a.launch.elements + first, n, scaled);
        }
    }

    int64_t slot(int i) const { return i * a.launch.batch * a.launch.elements; }

    // One part (0: prediction, 1: variance) of the network's rows that start at sample b0.
    const C* part(const Tile& t, int64_t b0, int which, C* scratch) const {
        if (a.output_elements == a.launch.elements || t.samples() == 1)
            return load(a.model_output, a.output_type, b0 * a.output_elements + which * a.launch.elements + t.e0, t.n(), scratch);
        for (int64_t k = 0; k < t.samples(); ++k) {
            C* to = scratch + k * t.elements;
            const int64_t from = (b0 + k) * a.output_elements + which * t.elements;
            save(to, TYPE, 0, t.elements, load(a.model_output, a.output_type, from, t.elements, to));
        }
        return scratch;
    }

    const C* output(const Tile& t, const Row<C>& r, State& s) const {
        const C* out = part(t, t.b0, 0, s.loaded[OUT]);
        if (a.guidance) {
            const C* cond = out;
            const C* uncond = part(t, a.launch.batch + t.b0, 0, s.uncond);
            for (int64_t k = 0; k < t.samples(); ++k) {
                const C gamma = ((const C*)a.guidance)[t.b0 + k], w = r.guidance_weight;
                const C g = w == 1 ? gamma : 1 + w * (gamma - 1);
                const int64_t from = k * t.elements;
                if (g == 1 || g == 0) {
                    const C* chosen = g == 1 ? cond : uncond;
                    if (t.samples() == 1)
                        out = chosen;
                    else
                        memcpy(s.guided + from, chosen + from, t.elements * sizeof(C));
                } else {
                    guide(cond + from, uncond + from, g, t.elements, s.guided + from);
                    out = s.guided;
                }
            }
            if (t.samples() > 1) out = s.guided;
        }
        if (r.out_grad != 0) {
            const C* gradient = load(a.gradient, a.gradient_type, t.flat(a.launch.elements), t.n(), s.gradient);
            add_scaled(out, r.out_grad, gradient, t.n(), s.guided);
            out = s.guided;
        }
        return out;
    }

    // The step of a sample's noise. Rows that draw none may hold anything there.
    uint64_t step_of(int64_t b) const {
        const double index = a.table[a.row[b] * COLUMNS + NOISE_INDEX];
        return index >= 0 && index < 0x1p32 ? (uint64_t)index : 0;
    }

    const C* noise(const Tile& whole, const Tile& t, const Row<C>& r, State& s) const {
        const C* z;
        if (a.noise) {
            z = load(a.noise, a.noise_type, t.flat(a.launch.elements), t.n(), s.loaded[Z]);
        } else {
            // once for the whole tile: short samples at different rows still share vectors
            float* normals = s.normals + (t.b0 - whole.b0) * t.elements;
            if (s.drawn_to <= t.b0) {
                draw_tile(a.draw, [&](int64_t b) { return step_of(b); }, {t.b0, whole.b1, t.e0, t.elements}, a.launch.elements,
                          normals);
                s.drawn_to = whole.b1;
            }
            z = load(normals, FD_FLOAT32, 0, t.n(), s.loaded[Z]);
        }
        if (!r.scales_noise) return z;
        scale_noise(z, part(t, t.b0, 1, s.variance), r.logvar_lo, r.logvar_hi, t.n(), s.loaded[Z]);
        return s.loaded[Z];
    }
};

}  // namespace

void reverse_step(const fd_reverse_step_args& args) {
    if (args.x_type == FD_FLOAT64)
        for_tiles(args.launch, ReverseStep<double>{args});
    else
        for_tiles(args.launch, ReverseStep<float>{args});
}

}  // namespace fastdiff::FD_LEVEL
