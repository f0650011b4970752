// The start of a row: its decoded columns, the network's output after guidance, rescale and gradient,
// and x0 before its clip. Shared by reverse_step and its prepasses, which need these values of a whole
// sample first.
//
// A missing operand is treated as one that no column reads: null pointers are never dereferenced.
#pragma once

#include "fastdiff/schema.h"
#include "memory.h"

namespace fastdiff::FD_LEVEL {

// Which operands are present: bit i is operand i.
static inline unsigned given_operands(const fd_reverse_step_args& a) {
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

    template <class R>
    FD_MEMBER bool rescales(const R& r, C strength) const {
        return a.rescale && r.row && r.row[GUIDANCE_RESCALE] != 0 && strength != 1;
    }

    FD_MEMBER void guided(const Spot& p, C strength, C (&out)[4]) const {
        if (strength != 0) part(p, p.b, 0, out);
        if (strength == 1) return;
        C uncond[4];
        part(p, a.launch.batch + p.b, 0, uncond);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) out[i] = strength == 0 ? uncond[i] : uncond[i] + strength * (out[i] - uncond[i]);
    }

    template <class R>
    FD_MEMBER void output(const Spot& p, const R& r, C (&out)[4]) const {
        const C g = strength(p.b, r);
        guided(p, g, out);
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
};

// The prepasses, launched before the step where args name memory for their results (prepass.cu).
int run_prepasses(const fd_reverse_step_args& args, const Tiling& t);

}  // namespace fastdiff::FD_LEVEL
