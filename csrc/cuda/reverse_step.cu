// reverse_step: one row of a plan for every sample, kernels/README.md section 4, in a single pass over memory.
//
// A block of a long sample has no other sample: it decodes the row once, in shared memory. If short
// samples share a block, every thread decodes its own row. A thread reads all its inputs before it
// writes, and no other thread accesses its elements, so outputs may be the same memory as inputs.
#include "step.h"

namespace fastdiff::FD_LEVEL {

template <class C, bool LONG, bool PLAIN>
struct ReverseStep {
    StepInputs<C, PLAIN> in;

    using Shared = SharedRow<C>;
    using View = Row<C, LONG>;
    enum { PHASES = LONG ? 2 : 1, THREADS = Tiling::THREADS };

    FD_MEMBER ReverseStep(const fd_reverse_step_args& a, const Tiling& t, unsigned given) : in{a, t, given} {}

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const Spot p = spot<LONG>(in.t, block, thread);
        if (!p.live) return;
        if (LONG && k == 0)
            decode(in.table_row(p.b), thread, s);
        else
            step(p, {LONG ? s.row : in.find_row(p.b), &s, in.given});
    }

    FD_MEMBER void decode(const Row<C, false>& r, int thread, Shared& s) const {
        if (thread < COLUMNS) s.value[thread] = r[thread];
        // by another warp, so both wait for the table at the same time
        const int output = thread - 64;
        if (output >= 0 && output < OUTPUTS) s.operands[output] = (uint8_t)r.operands(output);
        if (thread == 96) s.row = r.row;
    }

    FD_MEMBER void step(const Spot& p, const View& r) const {
        const fd_reverse_step_args& a = in.a;
        const int64_t all = a.launch.batch * a.launch.elements;
        const Span at = in.span(p);
        if (p.first()) follow(p.b, r);
        if (p.count == 0) return;

        unsigned reads = 0;
        FD_UNROLL
        for (int output = 0; output < OUTPUTS; ++output) reads |= r.operands(output);
        const bool wants_x0 = a.x0_out.data || (reads >> X0 & 1);
        C v[OPERANDS][4];
        if ((reads >> X & 1) || (wants_x0 && r[X0_X] != 0)) load<PLAIN>(a.x_t, at, v[X]);
        FD_UNROLL
        for (int i = 0; i < SLOTS; ++i)
            if ((reads >> (S1 + i) & 1) || copies(i, r)) load_as<C>(slot(a.slots, i, all), at, v[S1 + i]);
        if ((reads >> OUT & 1) || (wants_x0 && in.x0_reads_output(r))) in.output(p, r, v[OUT]);
        if (reads >> Z & 1) noise(p, r, v[Z]);
        if (wants_x0) {
            in.free_x0(r, v[X], v[OUT], v[X0]);
            clip(p.b, r, v[X0]);
        }
        // after x0, which is of the guided output
        if ((reads >> OUT & 1) && a.guidance && r[OUT_UNCOND] != 0 && in.strength(p.b, r) != 1)
            in.part(p, a.launch.batch + p.b, 0, v[OUT]);

        C to[4];
        FD_UNROLL
        for (int i = 0; i < SLOTS; ++i) {
            const bool copied = copies(i, r), made = !r.row || r.operands(1 + i);
            if (!a.slots_out || i >= a.slots_out_count || !(copied || made)) continue;
            combine(r, 1 + i, v, to);
            FD_UNROLL
            for (int j = 0; j < 4; ++j) to[j] = copied ? v[S1 + i][j] : to[j];
            store_as<C>(slot(a.slots_out, i, all), at, to);
        }
        combine(r, 0, v, to);
        store<PLAIN>(a.x_s, at, to);
        if (a.x0_out.data) store<PLAIN>(a.x0_out, at, v[X0]);
        if (!a.input_out.data) return;
        const int64_t next = following(r);
        const C scale = next >= 0 ? (C)a.table[next * COLUMNS + INPUT_SCALE] : (C)NAN;
        FD_UNROLL
        for (int i = 0; i < 4; ++i) to[i] = scale * to[i];
        for (int64_t copy = 0; copy < a.input_copies; ++copy)
            store<PLAIN>(a.input_out, {copy * all + at.at, at.count, at.vector}, to);
    }

    // c·v over the operands that the output reads, in column order, every product and sum rounded
    FD_MEMBER void combine(const View& r, int output, const C (&v)[OPERANDS][4], C (&to)[4]) const {
        const unsigned operands = r.operands(output);
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

    template <class P>
    static FD_MEMBER P slot(P slots, int i, int64_t all) {
        return (P)((const C*)slots + i * all);
    }

    // A slot that the row does not write is copied if the new slots have separate memory.
    FD_MEMBER bool copies(int i, const View& r) const {
        const fd_reverse_step_args& a = in.a;
        return a.slots_out && a.slots != a.slots_out && i < a.slots_out_count && (in.given >> (S1 + i) & 1) && r.row &&
               !r.operands(1 + i);
    }

    FD_MEMBER void noise(const Spot& p, const View& r, C (&z)[4]) const {
        const fd_reverse_step_args& a = in.a;
        if (a.noise.data) {
            load<PLAIN>(a.noise, in.span(p), z);
        } else {
            const double index = r.row[NOISE_INDEX];
            draw(a.draw, index >= 0 && index < 0x1p32 ? (uint64_t)index : 0, p, z);
        }
        if (r[NOISE_MODE] != 1 || !(in.given >> OUT & 1) || a.output_elements == a.launch.elements) return;
        const C lo = r[LOGVAR_LO], hi = r[LOGVAR_HI];
        C v[4];
        in.part(p, p.b, 1, v);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) z[i] = z[i] * exponential((C)0.5 * interpolated(lo, hi, v[i]));
    }

    FD_MEMBER void clip(int64_t b, const View& r, C (&x0)[4]) const {
        const bool dynamic = r[CLIP_MODE] == 2 && in.a.threshold;
        if (r[CLIP_MODE] != 1 && !dynamic) return;
        const C bound = dynamic ? ((const C*)in.a.threshold)[b] : r[CLIP_BOUND];
        FD_UNROLL
        for (int i = 0; i < 4; ++i) x0[i] = held(x0[i], bound);
        if (!dynamic) return;
        FD_UNROLL
        for (int i = 0; i < 4; ++i) x0[i] = x0[i] / bound;
    }

    // The row after this one; -1: none in the table.
    FD_MEMBER int64_t following(const View& r) const {
        const double next = r.row ? r.row[NEXT] : -1.0;
        return next >= 0 && next < (double)in.a.rows ? (int64_t)next : -1;
    }

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

}  // namespace fastdiff::FD_LEVEL

int fd_reverse_step(const fd_reverse_step_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l, args->draw)) return status;
    if (l.batch == 0 || (l.elements == 0 && !args->row_out && !args->time_out.data)) return FD_OK;
    const int64_t compute = args->x_t.type == FD_FLOAT64 ? FD_FLOAT64 : FD_FLOAT32;
    const Arrays arrays = Arrays(l)
                              .add(args->x_t).add(args->x_s).add(args->model_output).add(args->noise).add(args->gradient)
                              .add(args->x0_out).add(args->input_out).add(args->slots, compute).add(args->slots_out, compute);
    const Tiling t = tiling(l, arrays.vector);
    if (int status = run_prepasses(*args, t)) return status;
    return over_elements<ReverseStep>(FD_REVERSE_STEP, *args, compute, t, arrays.plain, given_operands(*args));
}
