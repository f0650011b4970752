// reverse_step: one row of a plan for every sample, kernels/README.md section 4.
//
// The samples of a tile that share a row are computed together: conversion to the compute type,
// guidance and gradient of the network output, x0 and its clip, the noise, then one pass per output.
// Results that another output may still read stay in scratch until all are computed, so outputs may be
// the same memory as inputs.
#include "kernels.h"

#include "step.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct ReverseStep : StepInputs<C> {
    using StepInputs<C>::a;

    struct State : StepScratch<C> {
        int64_t drawn_to;  // samples of the tile before this one have their normals
        alignas(64) float normals[BLOCK];
        alignas(64) C variance[BLOCK], renoised[BLOCK], fresh[OUTPUTS][BLOCK], scaled[BLOCK];
    };

    void operator()(const Tile& t, State& s) const {
        s.drawn_to = t.b0;
        for (int64_t b0 = t.b0, b1; b0 < t.b1; b0 = b1) {
            for (b1 = b0 + 1; b1 < t.b1 && a.row[b1] == a.row[b0];) ++b1;
            run(t, {b0, b1, t.e0, t.elements}, this->row(b0, s), s);
        }
    }

    void run(const Tile& whole, const Tile& t, const Row<C>& r, State& s) const {
        const int64_t n = t.n(), first = t.flat(a.launch.elements);
        const C* v[OPERANDS] = {};
        v[X] = load(a.x_t, first, n, s.loaded[X]);
        for (int i = 0; i < SLOTS; ++i)
            if (r.reads[S1 + i]) v[S1 + i] = (const C*)a.slots + slot(i) + first;
        if (a.model_output.data) v[OUT] = this->output(t, r, (const C*)a.rescale, s);
        if (r.reads[Z]) v[Z] = noise(whole, t, r, s);

        C* made[OUTPUTS] = {};
        made[0] = target(a.x_s, first, s.fresh[0]);
        const int slots_out = a.slots_out ? (int)a.slots_out_count : 0;
        if (r.plain && !slots_out && !a.x0_out.data) {
            step_plain(v, r, n, made[0]);
        } else {
            if (a.x0_out.data || r.reads[X0]) v[X0] = x0(t, v, r, s);
            if (r.out_uncond && a.guidance && a.model_output.data) v[OUT] = unconditional(t, v[OUT], r, s);
            for (int i = 0; i < slots_out; ++i) {
                const Combination<C>& c = r.outputs[1 + i];
                if (c.count) combine(v, c, n, made[1 + i] = s.fresh[1 + i]);
            }
            combine(v, r.outputs[0], n, made[0]);
        }

        save(a.x_s, first, n, made[0]);
        for (int i = 0; i < slots_out; ++i) {
            C* to = (C*)a.slots_out + slot(i) + first;
            if (made[1 + i])
                memcpy(to, made[1 + i], n * sizeof(C));
            else if (a.slots != a.slots_out && i < a.slot_count)
                memcpy(to, (const C*)a.slots + slot(i) + first, n * sizeof(C));
        }
        if (a.x0_out.data) save(a.x0_out, first, n, v[X0]);
        if (a.input_out.data) {
            C* scaled = target(a.input_out, first, s.scaled);
            scale(made[0], r.next_scale, n, scaled);
            for (int64_t copy = 0; copy < a.input_copies; ++copy)
                save(a.input_out, copy * a.launch.batch * a.launch.elements + first, n, scaled);
        }
    }

    int64_t slot(int i) const { return i * a.launch.batch * a.launch.elements; }

    const C* x0(const Tile& t, const C* const* v, const Row<C>& r, State& s) const {
        C* to = s.loaded[X0];
        combine(v, r.x0, t.n(), to);
        if (r.clip_mode == 1) clip(to, r.clip_bound, t.n());
        if (r.clip_mode == 2)
            for (int64_t b = t.b0; b < t.b1; ++b)
                threshold(to + (b - t.b0) * t.elements, ((const C*)a.threshold)[b], t.elements);
        return to;
    }

    // What rows with out_uncond read as OUT: the unconditional output, and `out` itself at strength 1.
    const C* unconditional(const Tile& t, const C* out, const Row<C>& r, State& s) const {
        const C* uncond = this->part(t, a.launch.batch + t.b0, 0, s.uncond);
        if (t.samples() == 1) return this->strength(t.b0, r) == 1 ? out : uncond;
        for (int64_t k = 0; k < t.samples(); ++k) {
            const C* from = this->strength(t.b0 + k, r) == 1 ? out : uncond;
            memcpy(s.renoised + k * t.elements, from + k * t.elements, t.elements * sizeof(C));
        }
        return s.renoised;
    }

    // The step of a sample's noise; meaningless for rows that draw none.
    uint64_t step_of(int64_t b) const {
        const double index = a.table[a.row[b] * COLUMNS + NOISE_INDEX];
        return index >= 0 && index < 0x1p32 ? (uint64_t)index : 0;
    }

    const C* noise(const Tile& whole, const Tile& t, const Row<C>& r, State& s) const {
        const C* z;
        if (a.noise.data) {
            z = load(a.noise, t.flat(a.launch.elements), t.n(), s.loaded[Z]);
        } else {
            // once for the whole tile, so short samples at different rows share vectors
            float* normals = s.normals + (t.b0 - whole.b0) * t.elements;
            if (s.drawn_to <= t.b0) {
                draw_tile(a.draw, [&](int64_t b) { return step_of(b); }, {t.b0, whole.b1, t.e0, t.elements}, a.launch.elements,
                          normals);
                s.drawn_to = whole.b1;
            }
            z = load({normals, FD_FLOAT32}, 0, t.n(), s.loaded[Z]);
        }
        if (!r.scales_noise) return z;
        scale_noise(z, this->part(t, t.b0, 1, s.variance), r.logvar_lo, r.logvar_hi, t.n(), s.loaded[Z]);
        return s.loaded[Z];
    }
};

}  // namespace

void reverse_step(const fd_reverse_step_args& args) {
    if (args.x_t.type == FD_FLOAT64)
        for_tiles(args.launch, ReverseStep<double>{{args}});
    else
        for_tiles(args.launch, ReverseStep<float>{{args}});
}

}  // namespace fastdiff::FD_LEVEL
