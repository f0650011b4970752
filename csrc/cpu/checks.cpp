// The argument checks of every op. Python has validated shapes and dtypes. The checks here depend on
// values: times, rows, and whether the rows in use read operands that are missing.
#include "checks.h"

#include <stdarg.h>
#include <stdio.h>

namespace fastdiff {

namespace {

thread_local char text[512] = "";

int check_launch(const fd_launch& l) {
    if (l.batch < 0 || l.elements < 0 || l.elements > int64_t(1) << 34)
        return fail(FD_VALUE_ERROR, "expected at most 2^34 elements in a sample, got %lld.", (long long)l.elements);
    return FD_OK;
}

int check_id(const fd_noise& d, int64_t b) {
    if (!d.sample_ids || (uint64_t)d.sample_ids[b] < FD_IDS) return FD_OK;
    return fail(FD_INDEX_ERROR, "expected sample_ids in [0, 2**56), got %lld at index %lld.", (long long)d.sample_ids[b],
                (long long)b);
}

int check_counter(const fd_noise& d) {
    if (d.stream >> 40) return fail(FD_VALUE_ERROR, "expected stream in [0, 2^40), got %llu.", (unsigned long long)d.stream);
    if (d.step >> 32) return fail(FD_VALUE_ERROR, "expected step in [0, 2^32), got %llu.", (unsigned long long)d.step);
    return FD_OK;
}

// Checks an op that draws noise for every sample.
int check_launch(const fd_launch& l, const fd_noise& d) {
    if (int status = check_launch(l)) return status;
    if (int status = check_counter(d)) return status;
    for (int64_t b = 0; b < l.batch && l.elements > 0; ++b)
        if (int status = check_id(d, b)) return status;
    return FD_OK;
}

int out_of_range(const char* what, int64_t size, int64_t value, int64_t at, const char* hint) {
    return fail(FD_INDEX_ERROR, "expected %s in [0, %lld), got %lld at index %lld. %s", what, (long long)size,
                (long long)value, (long long)at, hint);
}

int check_times(const int64_t* t, int64_t batch, int64_t times) {
    for (int64_t b = 0; b < batch; ++b)
        if (t[b] < 0 || t[b] >= times) return out_of_range("t", times, t[b], b, "Timesteps count from 0.");
    return FD_OK;
}

int check_workspace(const fd_launch& l, bool given) {
    if (given || l.elements <= FD_CHUNK || l.batch == 0) return FD_OK;  // of no samples there is nothing to sum
    return fail(FD_VALUE_ERROR, "expected a workspace for samples of more than %d elements, got none.", (int)FD_CHUNK);
}

// Whether one of the first `outputs` outputs reads the operand.
bool reads(const double* row, int operand, int outputs = OUTPUTS) {
    for (int output = 0; output < outputs; ++output)
        if (row[FIRST_COEFFICIENT + output * OPERANDS + operand] != 0) return true;
    return false;
}

bool inside(double value, double end) { return value >= 0 && value < end; }

bool whole(double value, double end) { return inside(value, end) && value == (double)(int64_t)value; }

bool flag(double value) { return value == 0 || value == 1; }

int broken(const char* column, const char* words, long long row, double value) {
    return fail(FD_VALUE_ERROR, "expected %s %s in row %lld of the table, got %g.", column, words, row, value);
}

// The rules of a row's header, as fastdiff/table.py has them.
int check_header(const double* r, int64_t rows, long long row) {
    if (!flag(r[NETWORK])) return broken("network", "0 or 1", row, r[NETWORK]);
    if (!whole(r[NEXT], (double)rows)) return broken("next", "a row of the table", row, r[NEXT]);
    if (!flag(r[CLIP_MODE]) && r[CLIP_MODE] != 2) return broken("clip_mode", "0, 1 or 2", row, r[CLIP_MODE]);
    if (r[CLIP_MODE] != 0 && !(r[CLIP_BOUND] >= 0)) return broken("clip_bound", "at least 0", row, r[CLIP_BOUND]);
    if (r[CLIP_MODE] == 2 && !(r[CLIP_RATIO] > 0 && r[CLIP_RATIO] <= 1))
        return broken("clip_ratio", "in (0, 1]", row, r[CLIP_RATIO]);
    if (!whole(r[NOISE_INDEX], 4294967296.0)) return broken("noise_index", "whole, in [0, 2^32)", row, r[NOISE_INDEX]);
    if (!flag(r[NOISE_MODE])) return broken("noise_mode", "0 or 1", row, r[NOISE_MODE]);
    if (!flag(r[OUT_UNCOND])) return broken("out_uncond", "0 or 1", row, r[OUT_UNCOND]);
    if (!whole(r[GUIDANCE_KIND], 6)) return broken("guidance_kind", "whole, in [0, 6)", row, r[GUIDANCE_KIND]);
    if (r[GUIDANCE_KIND] >= PROJECTED && !(r[GUIDANCE_BOUND] >= 0))
        return broken("guidance_bound", "at least 0", row, r[GUIDANCE_BOUND]);
    if (r[GUIDANCE_KIND] < KEEPING && r[GUIDANCE_MOMENTUM] != 0)
        return broken("guidance_momentum", "0 without guidance_kind 4 or 5", row, r[GUIDANCE_MOMENTUM]);
    for (int operand = 0; r[GUIDANCE_KIND] >= KEEPING && operand < OPERANDS; ++operand)
        if (r[FIRST_COEFFICIENT + SLOTS * OPERANDS + operand] != 0)
            return fail(FD_VALUE_ERROR,
                        "expected coefficients 0 of slot 4, which guidance_kind 4 and 5 write, in row %lld of the table, got others.",
                        row);
    return FD_OK;
}

// Checks that the operands of one row are there, for sample b. If the row is scored, they are those of the next x
// without its noise.
int check_row(const fd_reverse_step_args& a, int64_t b, bool scored = false) {
    const int outputs = scored ? 1 : OUTPUTS;
    const long long row = a.row[b], at = b;
    const double* r = a.table + row * COLUMNS;
    if (int status = check_header(r, a.rows, row)) return status;
    const bool x0 = a.x0_out.data || reads(r, X0, outputs);
    if (!a.model_output.data && (reads(r, OUT, outputs) || (x0 && r[X0_OUT] != 0)))
        return fail(FD_VALUE_ERROR, "expected model_output, which row %lld reads at index %lld, got none.", row, at);
    if (a.model_output.data && r[OUT_GRAD] != 0 && !a.gradient.data)
        return fail(FD_VALUE_ERROR, "expected gradient, which row %lld reads at index %lld, got none.", row, at);
    const bool remembers = a.guidance && a.model_output.data && r[GUIDANCE_MOMENTUM] != 0;  // in slot 4
    for (int i = 0; i < SLOTS; ++i)
        if ((reads(r, S1 + i, outputs) || (remembers && S1 + i == S4)) && (!a.slots || i >= a.slot_count))
            return fail(FD_VALUE_ERROR, "expected at least %d slots, which row %lld reads at index %lld, got %lld.", i + 1,
                        row, at, (long long)(a.slots ? a.slot_count : 0));
    if (x0 && r[CLIP_MODE] == 2 && !a.threshold)
        return fail(FD_VALUE_ERROR, "expected a place for thresholds, which row %lld needs at index %lld, got none.", row, at);
    if (a.guidance && r[GUIDANCE_RESCALE] != 0 && !a.rescale)
        return fail(FD_VALUE_ERROR, "expected a place for rescale factors, which row %lld needs at index %lld, got none.", row,
                    at);
    if (a.guidance && a.model_output.data && r[GUIDANCE_KIND] != 0 && !a.terms)
        return fail(FD_VALUE_ERROR, "expected a place for guidance terms, which row %lld needs at index %lld, got none.", row, at);
    const double on_z = r[FIRST_COEFFICIENT + Z];
    if (scored && (a.x_t.type == FD_FLOAT64 ? on_z : (double)(float)on_z) == 0)
        return fail(FD_VALUE_ERROR, "expected rows that draw noise, got row %lld at index %lld, which draws none. A step"
                    " without noise has no density.", row, at);
    if (!reads(r, Z, outputs)) return FD_OK;
    if (!scored && !a.noise.data && !a.seeded)
        return fail(FD_VALUE_ERROR, "expected seed or noise, which row %lld reads at index %lld, got neither.", row, at);
    if (r[NOISE_MODE] == 1 && (!a.model_output.data || a.output_elements != 2 * a.launch.elements))
        return fail(FD_VALUE_ERROR,
                    "expected model_output with a variance half, which row %lld reads at index %lld, got the elements of x_t.",
                    row, at);
    return FD_OK;
}

}  // namespace

int fail(int status, const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    return status;
}

const char* last_error() { return text; }

int check(const fd_randn_args& a) { return check_launch(a.launch, a.draw); }

int check(const fd_q_sample_args& a) {
    if (int status = a.noise.data ? check_launch(a.launch) : check_launch(a.launch, a.draw)) return status;
    return a.t ? check_times(a.t, a.launch.batch, a.times) : FD_OK;
}

int check(const fd_q_posterior_args& a) {
    if (int status = check_launch(a.launch)) return status;
    return check_times(a.t, a.launch.batch, a.times);
}

int check(const fd_vlb_terms_args& a) {
    if (int status = check_launch(a.launch)) return status;
    if (int status = check_workspace(a.launch, a.workspace || a.grad)) return status;
    return check_times(a.t, a.launch.batch, a.rows);
}

int check(const fd_reparameterize_args& a) { return check_launch(a.launch, a.draw); }

int check(const fd_noise_mse_args& a) {
    if (int status = check_launch(a.launch, a.draw)) return status;
    return check_workspace(a.launch, a.workspace || a.grad);
}

int check(const fd_gaussian_kl_args& a) {
    if (int status = check_launch(a.launch)) return status;
    return check_workspace(a.launch, a.workspace || a.grad);
}

int check(const fd_discretized_gaussian_nll_args& a) {
    if (int status = check_launch(a.launch)) return status;
    return check_workspace(a.launch, a.workspace || a.grad);
}

int check(const fd_group_norm_silu_args& a) {
    if (int status = check_launch(a.launch)) return status;
    if (a.channels > 0 && a.groups > 0 && a.channels % a.groups == 0 && a.launch.elements % a.channels == 0) return FD_OK;
    return fail(FD_VALUE_ERROR, "expected channels in equal groups, got %lld channels in %lld groups.", (long long)a.channels,
                (long long)a.groups);
}

int check(const fd_step_log_prob_args& args) {
    const fd_reverse_step_args& a = args.step;
    if (int status = check_launch(a.launch)) return status;
    if (int status = check_workspace(a.launch, a.partials)) return status;
    int64_t checked = -1;
    for (int64_t b = 0; b < a.launch.batch; ++b) {
        const int64_t row = a.row[b];
        if (row < 0 || row >= a.rows) return out_of_range("row", a.rows, row, b, "Rows belong to the table.");
        if (a.launch.elements == 0 || row == checked) continue;
        if (int status = check_row(a, b, true)) return status;
        checked = row;
    }
    return FD_OK;
}

int check(const fd_reverse_step_args& a) {
    if (int status = check_launch(a.launch)) return status;
    if (int status = check_counter(a.draw)) return status;
    if (int status = check_workspace(a.launch, !a.log_prob || a.partials)) return status;
    // neighbouring samples mostly share rows: a row is checked again only after a different one
    constexpr int KEPT = 256;
    int64_t checked[KEPT];
    bool draws[KEPT];
    for (int64_t& row : checked) row = -1;
    for (int64_t b = 0; b < a.launch.batch; ++b) {
        const int64_t row = a.row[b];
        if (row < 0 || row >= a.rows) return out_of_range("row", a.rows, row, b, "Rows belong to the table.");
        if (a.launch.elements == 0) continue;
        if (checked[row % KEPT] != row) {
            if (int status = check_row(a, b)) return status;
            checked[row % KEPT] = row;
            draws[row % KEPT] = !a.noise.data && reads(a.table + row * COLUMNS, Z);
        }
        if (!draws[row % KEPT]) continue;
        if (int status = check_id(a.draw, b)) return status;
    }
    return FD_OK;
}

}  // namespace fastdiff
