// reverse_step: one row of a plan for every sample, kernels/README.md section 4.
//
// The samples of a tile that share a row are computed together: conversion to the compute type,
// guidance and gradient of the network output, x0 and its clip, the noise, then one pass per output.
// Results that another output may still read stay in scratch until all are computed, so outputs may be
// the same memory as inputs. With log_prob the mean is computed first and the noise added to it, which
// rounds alike because the noise is the last operand.
#include "kernels.h"

#include "log_prob.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct ReverseStep : StepInputs<C> {
    using StepInputs<C>::a;

    struct State : StepScratch<C> {
        int64_t drawn_to;  // samples of the tile before this one have their normals
        alignas(64) float normals[BLOCK];
        alignas(64) C difference[BLOCK], variance[BLOCK], fresh[OUTPUTS][BLOCK], scaled[BLOCK];
        ScoreScratch<C> score;
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
        this->read(t, r, v, s);
        if (r.reads[Z]) v[Z] = noise(whole, t, r, s);

        C* made[OUTPUTS] = {};
        made[0] = target(a.x_s, first, s.fresh[0]);
        const int slots_out = a.slots_out ? (int)a.slots_out_count : 0;
        const C on_z = a.log_prob ? noise_coefficient(r) : 0;
        C* next = on_z != 0 ? s.score.mean : made[0];
        bool scored = false;
        if (r.plain && !slots_out && !a.x0_out.data) {
            // where x_s is stored as it is computed, the mean, the noise and the terms take one pass
            scored = on_z != 0 && made[0] != s.fresh[0] && !r.scales_noise;
            if (scored)
                score_plain(t, v, r, inverse_deviation(on_z), made[0], s.score.terms);
            else
                on_z != 0 ? mean_plain(v, r, n, next) : step_plain(v, r, n, next);
        } else {
            this->predict(t, r, a.x0_out.data || r.reads[X0], v, s);
            for (int i = 0; i < slots_out; ++i) {
                const Combination<C>& c = r.outputs[1 + i];
                if (c.count) combine(v, c, n, made[1 + i] = s.fresh[1 + i]);
            }
            combine(v, on_z != 0 ? mean_of(r) : r.outputs[0], n, next);
        }
        if (on_z != 0 && !scored) add_scaled(next, on_z, v[Z], n, made[0]);

        const bool keeps = r.kind >= KEEPING && slots_out == SLOTS && this->changes_uncond(r);
        if (keeps) difference(t, r, s);
        save(a.x_s, first, n, made[0]);
        if (on_z != 0 && !scored) score(*this, t, r, on_z, s.score);
        // of longer samples the second pass writes it
        if (a.log_prob && on_z == 0 && a.launch.elements <= FD_CHUNK)
            memset((C*)a.log_prob + t.b0, 0, t.samples() * sizeof(C));
        for (int i = 0; i < slots_out; ++i) {
            C* to = (C*)a.slots_out + this->slot(i) + first;
            if (made[1 + i])
                memcpy(to, made[1 + i], n * sizeof(C));
            else if (a.slots != a.slots_out && i < a.slot_count)
                memcpy(to, (const C*)a.slots + this->slot(i) + first, n * sizeof(C));
        }
        for (int64_t k = 0; keeps && k < t.samples(); ++k)
            if (this->strength(t.b0 + k, r) != 1)
                memcpy((C*)a.slots_out + this->slot(SLOTS - 1) + first + k * t.elements, s.difference + k * t.elements,
                       t.elements * sizeof(C));
        if (a.x0_out.data) save(a.x0_out, first, n, v[X0]);
        if (a.input_out.data) {
            C* scaled = target(a.input_out, first, s.scaled);
            scale(made[0], r.next_scale, n, scaled);
            for (int64_t copy = 0; copy < a.input_copies; ++copy)
                save(a.input_out, copy * a.launch.batch * a.launch.elements + first, n, scaled);
        }
    }

    void score_plain(const Tile& t, const C* const* v, const Row<C>& r, C inverse, C* to, C* terms) const {
        const bool one = t.samples() == 1;
        if (r.clip_mode)
            plain_scored<true>(v, r, inverse, t.n(), one, to, terms);
        else
            plain_scored<false>(v, r, inverse, t.n(), one, to, terms);
        const Tile left = {t.b0, t.b1, t.e0, one && t.elements > PARTIALS ? PARTIALS : t.elements};
        sum_tile(a.launch, left, terms, a.log_prob, a.partials, LogProb<C>{a});
    }

    // What a row with momentum leaves in slot 4; at strength 1 the slot keeps its value.
    void difference(const Tile& t, const Row<C>& r, State& s) const {
        const C* cond = this->part(t, t.b0, 0, s.loaded[OUT]);
        const C* memory = r.momentum != 0 ? this->memory(t) : nullptr;
        FD_LEVEL::difference(cond, this->uncond(t, s.uncond), r.momentum, memory, t.n(), s.difference);
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

template <class C>
void run(const fd_reverse_step_args& a) {
    if (a.launch.elements) for_tiles(a.launch, ReverseStep<C>{{a}});
    if (a.log_prob) sum_chunks<C>(a.launch, a.log_prob, a.partials, LogProb<C>{a});
}

}  // namespace

void reverse_step(const fd_reverse_step_args& args) {
    if (args.x_t.type == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
