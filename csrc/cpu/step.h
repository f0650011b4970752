// The start of a row: the network's output after guidance, rescale and gradient, and x0 before its
// clip. Shared by reverse_step and its prepasses, which need these values of a whole sample first.
#pragma once

#include "combine.h"
#include "fastdiff/ops.h"
#include "tiles.h"

namespace fastdiff::FD_LEVEL {

template <class C>
struct StepScratch {
    Rows<C> rows;
    alignas(64) C loaded[OPERANDS][BLOCK], uncond[BLOCK], guided[BLOCK], gradient[BLOCK];
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

    // `factors` [batch] or null: those of the rescaled guidance
    const C* output(const Tile& t, const Row<C>& r, const C* factors, StepScratch<C>& s) const {
        const C* out = part(t, t.b0, 0, s.loaded[OUT]);
        if (a.guidance) {
            const C* cond = out;
            const C* uncond = part(t, a.launch.batch + t.b0, 0, s.uncond);
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
};

}  // namespace fastdiff::FD_LEVEL
