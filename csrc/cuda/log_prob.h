// log N(x_s; mean, std² I) of a row's draw, kernels/README.md section 13: the same operations for a step that
// is being sampled and for one that is scored later, so both give the same bits.
#pragma once

#include "step.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

// The sum of a thread's terms, from x_s as it is stored.
template <class C, bool PLAIN, class R>
FD_HD C log_prob_terms(const StepInputs<C, PLAIN>& in, const Spot& p, const R& r, const C (&x_s)[4], const C (&mean)[4]) {
    const C inverse = inverse_deviation(r[FIRST_COEFFICIENT + Z]);
    C terms[4];
    if (in.scales_noise(r)) {
        C h[4];
        in.half_logvar(p, r, h);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) terms[i] = log_prob_term(x_s[i] - mean[i], inverse, h[i]);
    } else {
        FD_UNROLL
        for (int i = 0; i < 4; ++i) terms[i] = log_prob_term(x_s[i] - mean[i], inverse);
    }
    return added(terms, p.count);
}

// The end of a sample's sum: NaN for a row outside the table and, if `scored`, for one without noise.
template <class C>
struct LogProb {
    void* out;
    fd_reverse_step_args a;
    bool mean, scored;

    FD_MEMBER void write(int64_t b, double sum) const {
        const int64_t row = a.row[b], n = a.launch.elements;
        double value = NAN;
        if (row >= 0 && row < a.rows) {
            const double c = (C)a.table[row * COLUMNS + FIRST_COEFFICIENT + Z];
            if (n == 0 || (c == 0 && !scored))
                value = 0;
            else if (c != 0)
                value = mean ? log_prob(sum, c, n) / (double)n : log_prob(sum, c, n);
        }
        ((C*)out)[b] = (C)value;
    }
};

}  // namespace fastdiff::FD_LEVEL
