// The operands of a row: its decoded columns, the network's output after guidance, rescale and gradient,
// x0 and the slots, and their combinations. Shared by reverse_step, its prepasses, which need some of them
// of a whole sample first, and step_log_prob.
//
// A missing operand is treated as one that no column reads: null pointers are never dereferenced.
#pragma once

#include "fastdiff/schema.h"
#include "memory.h"

namespace fastdiff::FD_LEVEL {

// Which operands are present: bit i is operand i.
FD_HD unsigned given_operands(const fd_reverse_step_args& a) {
    const int64_t slots = a.slots ? a.slot_count : 0;
    unsigned given = 1u << X | 1u << X0;
    if (a.model_output.data) given |= 1u << OUT;
    for (int i = 0; i < SLOTS; ++i)
        if (i < slots) given |= 1u << (S1 + i);
    if (a.noise.data || a.seeded) given |= 1u << Z;
    return given;
}

// A row, decoded once by a block with one sample.
template <class C>
struct SharedRow {
    const double* row;
    C value[COLUMNS];
    uint8_t operands[OUTPUTS];
};

// A sample's row. Outside the table `row` is null, every column reads as zero, and sums start from NaN instead of +0.
template <class C, bool SHARED>
struct Row {
    const double* row;
    const SharedRow<C>* shared;
    unsigned given;

    FD_MEMBER C operator[](int column) const {
        if constexpr (SHARED)
            return shared->value[column];
        else
            return row ? (C)row[column] : (C)0;
    }

    // Bit i: the output reads operand i. A coefficient that underflows to zero in float32 is not read either.
    FD_MEMBER unsigned operands(int output) const {
        if constexpr (SHARED) return shared->operands[output];
        unsigned mask = 0;
        if (!row) return mask;
        FD_UNROLL
        for (int i = 0; i < OPERANDS; ++i) mask |= (unsigned)((C)row[FIRST_COEFFICIENT + output * OPERANDS + i] != 0) << i;
        return mask & given;
    }

    FD_MEMBER C start() const { return row ? (C)0 : (C)NAN; }
};

template <class C, bool PLAIN>
struct StepInputs {
    fd_reverse_step_args a;
    Tiling t;
    unsigned given;

    // null outside the table
    FD_MEMBER const double* find_row(int64_t b) const {
        const int64_t row = a.row[b];
        return row >= 0 && row < a.rows ? a.table + row * COLUMNS : nullptr;
    }

    FD_MEMBER Row<C, false> table_row(int64_t b) const { return {find_row(b), nullptr, given}; }

    FD_MEMBER Span span(const Spot& p) const {
        return {p.b * t.elements + p.e, PLAIN ? 4 : p.count, PLAIN || t.vector};
    }

    // One part (0: prediction, 1: variance) of the network's output for row b.
    FD_MEMBER void part(const Spot& p, int64_t b, int which, C (&to)[4]) const {
        load<PLAIN>(a.model_output, {b * a.output_elements + which * t.elements + p.e, p.count, t.vector}, to);
    }

    template <class R>
    FD_MEMBER C strength(int64_t b, const R& r) const {
        return a.guidance ? guidance_strength(((const C*)a.guidance)[b], r[GUIDANCE_WEIGHT]) : (C)1;
    }

    // Whether the row's kind of guidance changes the unconditional output.
    template <class R>
    FD_MEMBER bool changes_uncond(const R& r, C strength) const {
        return a.terms && a.guidance && r.row && r[GUIDANCE_KIND] != 0 && strength != 1;
    }

    // What an earlier row left in slot 4.
    FD_MEMBER void memory(const Spot& p, C (&to)[4]) const {
        load_as<C>((const C*)a.slots + (SLOTS - 1) * a.launch.batch * t.elements, span(p), to);
    }
    template <class R>
    FD_MEMBER bool remembers(const R& r) const {
        return (given >> S4 & 1) && r[GUIDANCE_MOMENTUM] != 0;
    }

    // What guidance takes as the unconditional output: u, or a combination of c, u, slot 4 and x.
    // Launches with kinds of guidance are never PLAIN.
    template <class R>
    FD_MEMBER void reference(const Spot& p, const R& r, C strength, C (&to)[4]) const {
        part(p, a.launch.batch + p.b, 0, to);
        if constexpr (!PLAIN) {
            if (!changes_uncond(r, strength)) return;
            C v[4], sum[4] = {0, 0, 0, 0};
            part(p, p.b, 0, v);
            add_term(p.b, 0, v, sum);
            add_term(p.b, 1, to, sum);
            if (remembers(r)) {
                memory(p, v);
                add_term(p.b, 2, v, sum);
            }
            if (r[GUIDANCE_X] != 0) {
                load<PLAIN>(a.x_t, span(p), v);
                add_term(p.b, 3, v, sum);
            }
            FD_UNROLL
            for (int i = 0; i < 4; ++i) to[i] = sum[i];
        }
    }

    FD_MEMBER void add_term(int64_t b, int which, const C (&v)[4], C (&sum)[4]) const {
        const C k = ((const C*)a.terms)[which * a.launch.batch + b];
        if (k == 0) return;
        FD_UNROLL
        for (int i = 0; i < 4; ++i) sum[i] = sum[i] + k * v[i];
    }

    template <class R>
    FD_MEMBER bool rescales(const R& r, C strength) const {
        return a.rescale && r.row && r.row[GUIDANCE_RESCALE] != 0 && strength != 1;
    }

    template <class R>
    FD_MEMBER void guided(const Spot& p, const R& r, C strength, C (&out)[4]) const {
        if (strength != 0) part(p, p.b, 0, out);
        if (strength == 1) return;
        C uncond[4];
        reference(p, r, strength, uncond);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) out[i] = strength == 0 ? uncond[i] : uncond[i] + strength * (out[i] - uncond[i]);
    }

    template <class R>
    FD_MEMBER void output(const Spot& p, const R& r, C (&out)[4]) const {
        const C g = strength(p.b, r);
        guided(p, r, g, out);
        if (rescales(r, g)) {
            const C f = ((const C*)a.rescale)[p.b];
            FD_UNROLL
            for (int i = 0; i < 4; ++i) out[i] = f * out[i];
        }
        const C by_gradient = r[OUT_GRAD];
        if (by_gradient != 0 && a.gradient.data) {
            C gradient[4];
            load<PLAIN>(a.gradient, span(p), gradient);
            FD_UNROLL
            for (int i = 0; i < 4; ++i) out[i] = out[i] + by_gradient * gradient[i];
        }
    }

    template <class R>
    FD_MEMBER bool x0_reads_output(const R& r) const {
        return (given >> OUT & 1) && r[X0_OUT] != 0;
    }

    // before the clip, from x and the output where the row reads them
    template <class R>
    FD_MEMBER void free_x0(const R& r, const C (&x)[4], const C (&out)[4], C (&x0)[4]) const {
        const C by_x = r[X0_X], by_out = r[X0_OUT];
        FD_UNROLL
        for (int i = 0; i < 4; ++i) x0[i] = r.start();
        if (by_x != 0) {
            FD_UNROLL
            for (int i = 0; i < 4; ++i) x0[i] = x0[i] + by_x * x[i];
        }
        if (x0_reads_output(r)) {
            FD_UNROLL
            for (int i = 0; i < 4; ++i) x0[i] = x0[i] + by_out * out[i];
        }
    }

    template <class P>
    static FD_MEMBER P slot(P slots, int i, int64_t all) {
        return (P)((const C*)slots + i * all);
    }

    // x, the slots and the output, of which the outputs read `reads`; `kept`: slots that are read too
    template <class R>
    FD_MEMBER void read(const Spot& p, const R& r, unsigned reads, bool wants_x0, unsigned kept, C (&v)[OPERANDS][4]) const {
        const Span at = span(p);
        if ((reads >> X & 1) || (wants_x0 && r[X0_X] != 0)) load<PLAIN>(a.x_t, at, v[X]);
        FD_UNROLL
        for (int i = 0; i < SLOTS; ++i)
            if (((reads | kept) >> (S1 + i) & 1))
                load_as<C>(slot(a.slots, i, a.launch.batch * a.launch.elements), at, v[S1 + i]);
        if ((reads >> OUT & 1) || (wants_x0 && x0_reads_output(r))) output(p, r, v[OUT]);
    }

    // x0 where it is wanted, and then the output that the combinations read
    template <class R>
    FD_MEMBER void predict(const Spot& p, const R& r, unsigned reads, bool wants_x0, C (&v)[OPERANDS][4]) const {
        if (wants_x0) {
            free_x0(r, v[X], v[OUT], v[X0]);
            clip(p.b, r, v[X0]);
        }
        if ((reads >> OUT & 1) && a.guidance && r[OUT_UNCOND] != 0 && strength(p.b, r) != 1)
            reference(p, r, strength(p.b, r), v[OUT]);
    }

    template <class R>
    FD_MEMBER void clip(int64_t b, const R& r, C (&x0)[4]) const {
        const bool dynamic = r[CLIP_MODE] == 2 && a.threshold;
        if (r[CLIP_MODE] != 1 && !dynamic) return;
        const C bound = dynamic ? ((const C*)a.threshold)[b] : r[CLIP_BOUND];
        FD_UNROLL
        for (int i = 0; i < 4; ++i) x0[i] = held(x0[i], bound);
        if (!dynamic) return;
        FD_UNROLL
        for (int i = 0; i < 4; ++i) x0[i] = x0[i] / bound;
    }

    // Whether the row's noise has a learned variance, the logarithm of which the output has.
    template <class R>
    FD_MEMBER bool scales_noise(const R& r) const {
        return r[NOISE_MODE] == 1 && (given >> OUT & 1) && a.output_elements != a.launch.elements;
    }

    template <class R>
    FD_MEMBER void half_logvar(const Spot& p, const R& r, C (&h)[4]) const {
        const C lo = r[LOGVAR_LO], hi = r[LOGVAR_HI];
        part(p, p.b, 1, h);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) h[i] = (C)0.5 * interpolated(lo, hi, h[i]);
    }

    // c·v over those of `operands` that the output reads, in column order, every product and sum rounded
    template <class R>
    FD_MEMBER void combine(const R& r, int output, const C (&v)[OPERANDS][4], C (&to)[4], unsigned operands = ~0u) const {
        operands &= r.operands(output);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) to[i] = r.start();
        FD_UNROLL
        for (int k = 0; k < OPERANDS; ++k) {
            if (!(operands >> k & 1)) continue;
            const C c = r[FIRST_COEFFICIENT + output * OPERANDS + k];
            FD_UNROLL
            for (int i = 0; i < 4; ++i) to[i] = to[i] + c * v[k][i];
        }
    }
};

// How a step's elements are divided among threads.
struct StepLayout {
    int64_t compute;
    Tiling t;
    bool plain;

    explicit StepLayout(const fd_reverse_step_args& a) : compute(a.x_t.type == FD_FLOAT64 ? FD_FLOAT64 : FD_FLOAT32) {
        const Arrays arrays = Arrays(a.launch)
                                  .add(a.x_t).add(a.x_s).add(a.model_output).add(a.noise).add(a.gradient).add(a.x0_out)
                                  .add(a.input_out).add(a.slots, compute).add(a.slots_out, compute);
        t = tiling(a.launch, arrays.vector);
        plain = arrays.plain && !a.terms;  // StepInputs::reference
    }
};

// The prepasses, launched before the step where args name memory for their results (prepass.cu).
int run_prepasses(const fd_reverse_step_args& args, const Tiling& t);

}  // namespace fastdiff::FD_LEVEL
