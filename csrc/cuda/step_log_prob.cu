// step_log_prob: the log-probability of a step that a row has drawn, kernels/README.md section 13.
#include "log_prob.h"

namespace fastdiff::FD_LEVEL {

template <class C, bool PLAIN>
struct StepLogProb {
    fd_step_log_prob_args args;
    Tiling t;

    FD_MEMBER C operator()(const Spot& p) const {
        const fd_reverse_step_args& a = args.step;
        const StepInputs<C, PLAIN> in = {a, t, given_operands(a)};
        const Row<C, false> r = in.table_row(p.b);
        if (!r.row || (r[FIRST_COEFFICIENT + Z] == 0 && t.elements)) {
            if (p.first()) report(a.launch, FD_STEP_LOG_PROB);
            return (C)NAN;
        }
        if (p.count == 0) return 0;
        const unsigned reads = r.operands(0);
        const bool wants_x0 = reads >> X0 & 1;
        C v[OPERANDS][4], mean[4], x_s[4];
        in.read(p, r, reads, wants_x0, 0, v);
        in.predict(p, r, reads, wants_x0, v);
        in.combine(r, 0, v, mean, ~(1u << Z));
        load<PLAIN>(a.x_s.data, a.x_s.type, in.span(p), x_s);
        return log_prob_terms(in, p, r, x_s, mean);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_step_log_prob(const fd_step_log_prob_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_reverse_step_args& a = args->step;
    const fd_launch& l = a.launch;
    if (int status = check(l)) return status;
    if (l.batch == 0) return FD_OK;
    const StepLayout layout(a);
    if (int status = run_prepasses(a, layout.t)) return status;
    return sum_terms<StepLogProb, LogProb>(FD_STEP_LOG_PROB, l, layout.compute, layout.t, layout.plain, a.partials, *args,
                                           a.log_prob, a, args->mean != 0, true);
}
