// A row of a plan, decoded: for every output the operands it reads, in column order, with their coefficients.
//
// Decoding costs about as much as ten elements. Neighbouring samples mostly share rows, so each thread
// caches the rows that it decoded last.
#pragma once

#include "fastdiff/schema.h"

namespace fastdiff::FD_LEVEL {

template <class C>
struct Combination {
    int count;
    int operand[OPERANDS];
    C coefficient[OPERANDS];
};

template <class C>
struct Row {
    bool reads[OPERANDS], scales_noise;
    bool out_uncond;  // the outputs read the unconditional output as OUT
    bool plain;  // x0 from x and out, at most clipped; next x from x, x0 and maybe z: DDPM, DDIM, Euler
    int clip_mode, kind;  // of the clip, and of the guidance
    double rescale, clip_ratio;
    const double* columns;
    Combination<C> x0, outputs[OUTPUTS];
    C guidance_weight, momentum, out_grad, clip_bound, logvar_lo, logvar_hi, next_scale;
};

template <class C>
static void append(Combination<C>& to, int operand, double coefficient) {
    // an operand whose coefficient underflows to zero in float32 is not read
    if ((C)coefficient == 0) return;
    to.operand[to.count] = operand;
    to.coefficient[to.count++] = (C)coefficient;
}

template <class C>
static void decode(const double* table, int64_t row, Row<C>& to) {
    const double* r = table + row * COLUMNS;
    to = {};
    append(to.x0, X, r[X0_X]);
    append(to.x0, OUT, r[X0_OUT]);
    for (int output = 0; output < OUTPUTS; ++output) {
        Combination<C>& c = to.outputs[output];
        for (int operand = 0; operand < OPERANDS; ++operand)
            append(c, operand, r[FIRST_COEFFICIENT + output * OPERANDS + operand]);
        for (int i = 0; i < c.count; ++i) to.reads[c.operand[i]] = true;
    }
    to.columns = r;
    to.kind = (int)r[GUIDANCE_KIND];
    to.momentum = (C)r[GUIDANCE_MOMENTUM];
    to.clip_mode = (int)r[CLIP_MODE];
    to.clip_ratio = r[CLIP_RATIO];
    to.rescale = r[GUIDANCE_RESCALE];
    const Combination<C>& x = to.outputs[0];
    to.plain = to.x0.count == 2 && to.clip_mode < 2 && (x.count == 2 || (x.count == 3 && x.operand[2] == Z)) &&
               x.operand[0] == X && x.operand[1] == X0;
    to.scales_noise = r[NOISE_MODE] == 1;
    to.out_uncond = r[OUT_UNCOND] == 1 && to.reads[OUT];
    to.guidance_weight = (C)r[GUIDANCE_WEIGHT];
    to.out_grad = (C)r[OUT_GRAD];
    to.clip_bound = (C)r[CLIP_BOUND];
    to.logvar_lo = (C)r[LOGVAR_LO];
    to.logvar_hi = (C)r[LOGVAR_HI];
    to.next_scale = (C)table[(int64_t)r[NEXT] * COLUMNS + INPUT_SCALE];
}

template <class C>
class Rows {
    static constexpr int KEPT = 64;
    int64_t index_[KEPT];
    Row<C> rows_[KEPT];

  public:
    Rows() {
        for (int64_t& i : index_) i = -1;
    }

    const Row<C>& get(const double* table, int64_t row) {
        const int at = (int)(row % KEPT);
        if (index_[at] != row) {
            decode(table, row, rows_[at]);
            index_[at] = row;
        }
        return rows_[at];
    }
};

}  // namespace fastdiff::FD_LEVEL
