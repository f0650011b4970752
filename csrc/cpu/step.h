// The operands of a row: the network's output after guidance, rescale and gradient, x0 and the slots.
// Shared by reverse_step, its prepasses, which need some of them of a whole sample first, and step_log_prob.
#pragma once

#include "combine.h"
#include "fastdiff/ops.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {

template <class C>
struct StepScratch {
    Rows<C> rows;
    alignas(64) C loaded[OPERANDS][BLOCK], uncond[BLOCK], replaced[BLOCK], guided[BLOCK], gradient[BLOCK], renoised[BLOCK];
};

template <class C>
struct StepInputs {
    const fd_reverse_step_args& a;

    const Row<C>& row(int64_t b, StepScratch<C>& s) const { return s.rows.get(a.table, a.row[b]); }

    // One part (0: prediction, 1: variance) of the network's rows that start at sample b0.
    const C* part(const Tile& t, int64_t b0, int which, C* scratch) const {
        if (a.output_elements == a.launch.elements || t.samples() == 1)
            return load(a.model_output, b0 * a.output_elements + which * a.launch.elements + t.e0, t.n(), scratch);
        for (int64_t k = 0; k < t.samples(); ++k) {
            C* to = scratch + k * t.elements;
            const int64_t from = (b0 + k) * a.output_elements + which * t.elements;
            save({to, TYPE_OF<C>}, 0, t.elements, load(a.model_output, from, t.elements, to));
        }
        return scratch;
    }

    C strength(int64_t b, const Row<C>& r) const {
        return a.guidance ? guidance_strength(((const C*)a.guidance)[b], r.guidance_weight) : (C)1;
    }

    bool rescales(int64_t b, const Row<C>& r) const { return a.rescale && r.rescale != 0 && strength(b, r) != 1; }

    const C* uncond(const Tile& t, C* scratch) const { return part(t, a.launch.batch + t.b0, 0, scratch); }

    // The difference that an earlier row left in slot 4, for rows with momentum.
    const C* memory(const Tile& t) const {
        return (const C*)a.slots + (SLOTS - 1) * a.launch.batch * a.launch.elements + t.flat(a.launch.elements);
    }

    bool changes_uncond(const Row<C>& r) const { return a.terms && a.guidance && r.kind != LINEAR; }

    // What guidance takes as the unconditional output: u, or with a kind of guidance a combination of c, u, slot 4 and x.
    const C* reference(const Tile& t, const Row<C>& r, const C* cond, StepScratch<C>& s) const {
        const C* u = uncond(t, s.uncond);
        if (!changes_uncond(r)) return u;
        const C* x = load(a.x_t, t.flat(a.launch.elements), t.n(), s.loaded[X]);
        for (int64_t k = 0; k < t.samples(); ++k) {
            const int64_t b = t.b0 + k, from = k * t.elements;
            if (strength(b, r) == 1) continue;  // nothing reads it
            const C* operands[4] = {cond + from, u + from, r.momentum != 0 ? memory(t) + from : nullptr, x + from};
            Combination<C> c{};
            for (int i = 0; i < 4; ++i) append(c, i, (double)((const C*)a.terms)[i * a.launch.batch + b]);
            combine(operands, c, t.elements, s.replaced + from);
        }
        return s.replaced;
    }

    // `factors` [batch] or null: those of the rescaled guidance
    const C* output(const Tile& t, const Row<C>& r, const C* factors, StepScratch<C>& s) const {
        const C* out = part(t, t.b0, 0, s.loaded[OUT]);
        if (a.guidance) {
            const C* cond = out;
            const C* uncond = reference(t, r, cond, s);
            const bool one = t.samples() == 1;
            for (int64_t k = 0; k < t.samples(); ++k) {
                const C g = strength(t.b0 + k, r);
                const int64_t from = k * t.elements;
                C* to = s.guided + from;
                const C* result = to;
                if (g == 1 || g == 0)
                    result = (g == 1 ? cond : uncond) + from;
                else
                    guide(cond + from, uncond + from, g, t.elements, to);
                if (factors && rescales(t.b0 + k, r)) {
                    scale(result, factors[t.b0 + k], t.elements, to);
                    result = to;
                }
                if (one)
                    out = result;
                else if (result != to)
                    memcpy(to, result, t.elements * sizeof(C));
            }
            if (!one) out = s.guided;
        }
        if (r.out_grad != 0) {
            const C* gradient = load(a.gradient, t.flat(a.launch.elements), t.n(), s.gradient);
            add_scaled(out, r.out_grad, gradient, t.n(), s.guided);
            out = s.guided;
        }
        return out;
    }

    int64_t slot(int i) const { return i * a.launch.batch * a.launch.elements; }

    // x, the slots and the network's output
    void read(const Tile& t, const Row<C>& r, const C* (&v)[OPERANDS], StepScratch<C>& s) const {
        const int64_t first = t.flat(a.launch.elements);
        v[X] = load(a.x_t, first, t.n(), s.loaded[X]);
        for (int i = 0; i < SLOTS; ++i)
            if (r.reads[S1 + i] && i < a.slot_count) v[S1 + i] = (const C*)a.slots + slot(i) + first;
        if (a.model_output.data) v[OUT] = output(t, r, (const C*)a.rescale, s);
    }

    // x0 where it is wanted, and then the output that the combinations read
    void predict(const Tile& t, const Row<C>& r, bool wants_x0, const C* (&v)[OPERANDS], StepScratch<C>& s) const {
        if (wants_x0) v[X0] = x0(t, v, r, s);
        if (r.out_uncond && a.guidance && a.model_output.data) v[OUT] = unconditional(t, v[OUT], r, s);
    }

    const C* x0(const Tile& t, const C* const* v, const Row<C>& r, StepScratch<C>& s) const {
        C* to = s.loaded[X0];
        combine(v, r.x0, t.n(), to);
        if (r.clip_mode == 1) clip(to, r.clip_bound, t.n());
        if (r.clip_mode == 2)
            for (int64_t b = t.b0; b < t.b1; ++b)
                threshold(to + (b - t.b0) * t.elements, ((const C*)a.threshold)[b], t.elements);
        return to;
    }

    // What rows with out_uncond read as OUT: the unconditional output, and `out` itself at strength 1.
    const C* unconditional(const Tile& t, const C* out, const Row<C>& r, StepScratch<C>& s) const {
        const C* cond = changes_uncond(r) ? part(t, t.b0, 0, s.loaded[OUT]) : nullptr;
        const C* uncond = reference(t, r, cond, s);
        if (t.samples() == 1) return strength(t.b0, r) == 1 ? out : uncond;
        for (int64_t k = 0; k < t.samples(); ++k) {
            const C* from = strength(t.b0 + k, r) == 1 ? out : uncond;
            memcpy(s.renoised + k * t.elements, from + k * t.elements, t.elements * sizeof(C));
        }
        return s.renoised;
    }
};

}  // namespace fastdiff::FD_LEVEL
