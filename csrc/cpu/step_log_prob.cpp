// step_log_prob: the log-probability of a step that a row has drawn, kernels/README.md section 13.
//
// The mean is what reverse_step computes before it adds the noise: from the same operands, which step.h
// has, and by the same passes.
#include "kernels.h"

#include "log_prob.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct StepLogProb : StepInputs<C> {
    using StepInputs<C>::a;
    bool mean;

    struct State : StepScratch<C> {
        ScoreScratch<C> score;
    };

    void operator()(const Tile& t, State& s) const {
        for (int64_t b0 = t.b0, b1; b0 < t.b1; b0 = b1) {
            for (b1 = b0 + 1; b1 < t.b1 && a.row[b1] == a.row[b0];) ++b1;
            run({b0, b1, t.e0, t.elements}, this->row(b0, s), s);
        }
    }

    void run(const Tile& t, const Row<C>& r, State& s) const {
        const C* v[OPERANDS] = {};
        this->read(t, r, v, s);
        if (r.plain) {
            mean_plain(v, r, t.n(), s.score.mean);
        } else {
            const Combination<C> x = mean_of(r);
            this->predict(t, r, reads(x, X0), v, s);
            combine(v, x, t.n(), s.score.mean);
        }
        score(*this, t, r, noise_coefficient(r), s.score, mean);
    }

    static bool reads(const Combination<C>& c, int operand) {
        for (int i = 0; i < c.count; ++i)
            if (c.operand[i] == operand) return true;
        return false;
    }
};

template <class C>
void run(const fd_step_log_prob_args& args) {
    const fd_reverse_step_args& a = args.step;
    const bool mean = args.mean != 0;
    if (a.launch.elements) for_tiles(a.launch, StepLogProb<C>{{a}, mean});
    sum_chunks<C>(a.launch, a.log_prob, a.partials, LogProb<C>{a, mean});
}

}  // namespace

void step_log_prob(const fd_step_log_prob_args& args) {
    if (args.step.x_t.type == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
