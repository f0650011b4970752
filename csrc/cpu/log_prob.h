// log N(x_s; mean, std² I) of a row's draw, kernels/README.md section 13: the same operations for a step that
// is being sampled and for one that is scored later, so both give the same bits.
#pragma once

#include "step.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

template <class C>
struct ScoreScratch {
    alignas(64) C mean[BLOCK], stored[BLOCK], variance[BLOCK], terms[BLOCK];
};

// The noise's coefficient in the next x, 0 for rows that draw none: the noise is the last operand.
template <class C>
static C noise_coefficient(const Row<C>& r) {
    const Combination<C>& x = r.outputs[0];
    return x.count && x.operand[x.count - 1] == Z ? x.coefficient[x.count - 1] : 0;
}

// The next x without its noise, for rows that draw some.
template <class C>
static Combination<C> mean_of(const Row<C>& r) {
    Combination<C> mean = r.outputs[0];
    --mean.count;
    return mean;
}

// The end of a sample's sum.
template <class C>
struct LogProb {
    const fd_reverse_step_args& a;
    bool mean = false;

    double operator()(int64_t b, double total) const {
        const double c = (C)a.table[a.row[b] * COLUMNS + FIRST_COEFFICIENT + Z];
        if (c == 0) return 0;
        const double value = log_prob(total, c, a.launch.elements);
        return mean ? value / (double)a.launch.elements : value;
    }
};

// Sums the terms of the tile's samples, which share a row, from x_s as it is stored and s.mean.
template <class C>
static void score(const StepInputs<C>& in, const Tile& t, const Row<C>& r, C on_z, ScoreScratch<C>& s, bool mean = false) {
    const fd_reverse_step_args& a = in.a;
    const int64_t n = t.n();
    const C inverse = inverse_deviation(on_z);
    const C* x_s = load({a.x_s.data, a.x_s.type}, t.flat(a.launch.elements), n, s.stored);
    if (r.scales_noise) {
        const C* v = in.part(t, t.b0, 1, s.variance);
        FD_SIMD
        for (int64_t i = 0; i < n; ++i)
            s.terms[i] = log_prob_term(x_s[i] - s.mean[i], inverse, (C)0.5 * interpolated(r.logvar_lo, r.logvar_hi, v[i]));
    } else {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) s.terms[i] = log_prob_term(x_s[i] - s.mean[i], inverse);
    }
    sum_tile(a.launch, t, s.terms, a.log_prob, a.partials, LogProb<C>{a, mean});
}

}  // namespace fastdiff::FD_LEVEL
