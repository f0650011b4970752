// reverse_step: one row of a plan for every sample, kernels/README.md section 4, in a single pass over memory.
//
// A block of a long sample has no other sample: it decodes the row once, in shared memory. If short
// samples share a block, every thread decodes its own row. A thread reads all its inputs before it
// writes, and no other thread accesses its elements, so outputs may be the same memory as inputs.
#include "log_prob.h"

namespace fastdiff::FD_LEVEL {

template <class C, bool PLAIN>
struct StepBody {
    StepInputs<C, PLAIN> in;

    // Executes the row for a thread's elements. SCORED: returns the sum of their log-probability's terms.
    template <bool SCORED, class View>
    FD_MEMBER C step(const Spot& p, const View& r) const {
        const fd_reverse_step_args& a = in.a;
        const int64_t all = a.launch.batch * a.launch.elements;
        const Span at = in.span(p);
        if (p.first()) follow(p.b, r);
        if (p.count == 0) return 0;

        unsigned reads = 0, kept = 0;
        FD_UNROLL
        for (int output = 0; output < OUTPUTS; ++output) reads |= r.operands(output);
        FD_UNROLL
        for (int i = 0; i < SLOTS; ++i) kept |= (unsigned)copies(i, r) << (S1 + i);
        const bool wants_x0 = a.x0_out.data || (reads >> X0 & 1);
        C v[OPERANDS][4];
        in.read(p, r, reads, wants_x0, kept, v);
        if (reads >> Z & 1) noise(p, r, v[Z]);
        in.predict(p, r, reads, wants_x0, v);

        C to[4], difference[4], score = 0;
        const bool keeps = keep(p, r, difference);
        FD_UNROLL
        for (int i = 0; i < SLOTS; ++i) {
            const bool copied = kept >> (S1 + i) & 1, made = !r.row || r.operands(1 + i);
            if (!a.slots_out || i >= a.slots_out_count || !(copied || made)) continue;
            in.combine(r, 1 + i, v, to);
            FD_UNROLL
            for (int j = 0; j < 4; ++j) to[j] = copied ? v[S1 + i][j] : to[j];
            store_as<C>(in.slot(a.slots_out, i, all), at, to);
        }
        if (SCORED && (r.operands(0) >> Z & 1)) {
            // the noise is the last operand, so x_s rounds as it does in one combination
            C mean[4], stored[4];
            in.combine(r, 0, v, mean, ~(1u << Z));
            const C c = r[FIRST_COEFFICIENT + Z];
            FD_UNROLL
            for (int i = 0; i < 4; ++i) stored[i] = to[i] = mean[i] + c * v[Z][i];
            round_to<PLAIN>(a.x_s.type, stored);
            score = log_prob_terms(in, p, r, stored, mean);
        } else {
            in.combine(r, 0, v, to);
        }
        if (keeps) store_as<C>(in.slot(a.slots_out, SLOTS - 1, all), at, difference);
        store<PLAIN>(a.x_s, at, to);
        if (a.x0_out.data) store<PLAIN>(a.x0_out, at, v[X0]);
        if (!a.input_out.data) return score;
        const int64_t next = following(r);
        const C scale = next >= 0 ? (C)a.table[next * COLUMNS + INPUT_SCALE] : (C)NAN;
        FD_UNROLL
        for (int i = 0; i < 4; ++i) to[i] = scale * to[i];
        for (int64_t copy = 0; copy < a.input_copies; ++copy)
            store<PLAIN>(a.input_out, {copy * all + at.at, at.count, at.vector}, to);
        return score;
    }

    // Whether a row with momentum leaves its difference in slot 4, and that difference.
    template <class View>
    FD_MEMBER bool keep(const Spot& p, const View& r, C (&to)[4]) const {
        if constexpr (!PLAIN) {
            const fd_reverse_step_args& a = in.a;
            if (!in.changes_uncond(r, in.strength(p.b, r)) || r[GUIDANCE_KIND] < KEEPING) return false;
            if (!a.slots_out || a.slots_out_count < SLOTS) return false;
            C v[4];
            in.part(p, p.b, 0, to);
            in.part(p, a.launch.batch + p.b, 0, v);
            FD_UNROLL
            for (int i = 0; i < 4; ++i) to[i] = to[i] - v[i];
            if (!in.remembers(r)) return true;
            const C momentum = r[GUIDANCE_MOMENTUM];
            in.memory(p, v);
            FD_UNROLL
            for (int i = 0; i < 4; ++i) to[i] = to[i] + momentum * v[i];
            return true;
        }
        return false;
    }

    // A slot that the row does not write is copied if the new slots have separate memory.
    template <class View>
    FD_MEMBER bool copies(int i, const View& r) const {
        const fd_reverse_step_args& a = in.a;
        return a.slots_out && a.slots != a.slots_out && i < a.slots_out_count && (in.given >> (S1 + i) & 1) && r.row &&
               !r.operands(1 + i);
    }

    template <class View>
    FD_MEMBER void noise(const Spot& p, const View& r, C (&z)[4]) const {
        const fd_reverse_step_args& a = in.a;
        if (a.noise.data) {
            load<PLAIN>(a.noise, in.span(p), z);
        } else {
            const double index = r.row[NOISE_INDEX];
            draw(a.draw, index >= 0 && index < 0x1p32 ? (uint64_t)index : 0, p, z);
        }
        if (!in.scales_noise(r)) return;
        C h[4];
        in.half_logvar(p, r, h);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) z[i] = z[i] * exponential(h[i]);
    }

    // The row after this one; -1: none in the table.
    template <class View>
    FD_MEMBER int64_t following(const View& r) const {
        const double next = r.row ? r.row[NEXT] : -1.0;
        return next >= 0 && next < (double)in.a.rows ? (int64_t)next : -1;
    }

    template <class View>
    FD_MEMBER void follow(int64_t b, const View& r) const {
        const int64_t next = following(r);
        if (next < 0) report(in.a.launch, FD_REVERSE_STEP);
        if (in.a.row_out) in.a.row_out[b] = r.row ? next : in.a.row[b];
        if (in.a.time_out.data) write_time(b, next >= 0 ? in.a.table[next * COLUMNS + TIME] : (double)NAN);
    }

    // The time t of the row that a sample executes next; NaN where there is none.
    FD_MEMBER void write_time(int64_t b, double t) const {
        const fd_reverse_step_args& a = in.a;
        for (int64_t i = b; i < a.time_copies * a.launch.batch; i += a.launch.batch)
            if (a.time_out.type == FD_INT64)
                ((int64_t*)a.time_out.data)[i] = t == t ? (int64_t)rint(t) : 0;
            else
                ((float*)a.time_out.data)[i] = (float)t;
    }
};

template <class C, bool LONG, bool PLAIN>
struct ReverseStep {
    StepBody<C, PLAIN> body;

    using Shared = SharedRow<C>;
    enum { PHASES = LONG ? 2 : 1, THREADS = Tiling::THREADS };

    FD_MEMBER ReverseStep(const fd_reverse_step_args& a, const Tiling& t, unsigned given) : body{{a, t, given}} {}

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const StepInputs<C, PLAIN>& in = body.in;
        const Spot p = spot<LONG>(in.t, block, thread);
        if (!p.live) return;
        if (LONG && k == 0)
            decode(in.table_row(p.b), thread, s);
        else
            body.template step<false>(p, Row<C, LONG>{LONG ? s.row : in.find_row(p.b), &s, in.given});
    }

    FD_MEMBER void decode(const Row<C, false>& r, int thread, Shared& s) const {
        if (thread < COLUMNS) s.value[thread] = r[thread];
        // by another warp, so both wait for the table at the same time
        const int output = thread - 64;
        if (output >= 0 && output < OUTPUTS) s.operands[output] = (uint8_t)r.operands(output);
        if (thread == 96) s.row = r.row;
    }
};

// The same row, with the terms of its log-probability, which are summed.
template <class C, bool PLAIN>
struct ScoredStep {
    fd_reverse_step_args a;
    Tiling t;

    FD_MEMBER C operator()(const Spot& p) const {
        const StepBody<C, PLAIN> body = {{a, t, given_operands(a)}};
        return body.template step<true>(p, body.in.table_row(p.b));
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_reverse_step(const fd_reverse_step_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l, args->draw)) return status;
    if (l.batch == 0 || (l.elements == 0 && !args->row_out && !args->time_out.data && !args->log_prob)) return FD_OK;
    const StepLayout layout(*args);
    if (int status = run_prepasses(*args, layout.t)) return status;
    if (args->log_prob)
        return sum_terms<ScoredStep, LogProb>(FD_REVERSE_STEP, l, layout.compute, layout.t, layout.plain, args->partials, *args,
                                              args->log_prob, *args, false, false);
    return over_elements<ReverseStep>(FD_REVERSE_STEP, *args, layout.compute, layout.t, layout.plain, given_operands(*args));
}
