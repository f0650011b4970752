// vlb_terms: the KL of the posterior and the model's Gaussian, or the data's likelihood under it, in
// one pass over x0, x_t and the network's output, kernels/README.md section 11.
#include "kernels.h"

#include "convert.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct VlbTerms {
    const fd_vlb_terms_args& a;

    struct State {
        alignas(64) C x0[BLOCK], x_t[BLOCK], out[BLOCK], variance[BLOCK], result[BLOCK], by_out[BLOCK], by_v[BLOCK];
    };

    bool learned() const { return a.output_elements != a.launch.elements; }

    void operator()(const Tile& t, State& s) const {
        const int64_t per_sample = a.launch.elements, first = t.flat(per_sample);
        const C* x0 = load(a.x0, first, t.n(), s.x0);
        const C* x_t = load(a.x_t, first, t.n(), s.x_t);
        for (int64_t b = t.b0; b < t.b1; ++b) {
            const VlbRow<C> row = vlb_row<C>(a.table + a.t[b] * VLB_COLUMNS);
            const int64_t at = (b - t.b0) * t.elements, from = b * a.output_elements + t.e0;
            const C* out = load(a.model_output, from, t.elements, s.out);
            if (learned()) {
                const C* v = load(a.model_output, from + per_sample, t.elements, s.variance);
                FD_SIMD
                for (int64_t i = 0; i < t.elements; ++i) s.variance[i] = interpolated(row.lo, row.hi, v[i]);
            } else {
                for (int64_t i = 0; i < t.elements; ++i) s.variance[i] = row.lo;
            }
            if (a.grad) {
                const C g = ((const C*)a.grad)[b];
                if (row.first)
                    terms<true, true>(row, x0 + at, x_t + at, out, t.elements, g, s, s.result);
                else
                    terms<true, false>(row, x0 + at, x_t + at, out, t.elements, g, s, s.result);
                save(a.g_output, from, t.elements, s.by_out);
                if (learned()) save(a.g_output, from + per_sample, t.elements, s.by_v);
            } else if (row.first) {
                terms<false, true>(row, x0 + at, x_t + at, out, t.elements, 0, s, s.result + at);
            } else {
                terms<false, false>(row, x0 + at, x_t + at, out, t.elements, 0, s, s.result + at);
            }
        }
        if (!a.grad) sum_tile(a.launch, t, s.result, a.terms, a.workspace, AS_IT_IS);
    }

    template <bool GRADIENT, bool FIRST>
    static void terms(const VlbRow<C>& row, const C* x0, const C* x_t, const C* out, int64_t n, C g, State& s, C* to) {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) {
            const VlbTerm<C> v = vlb_term<GRADIENT, FIRST>(row, x0[i], x_t[i], out[i], s.variance[i]);
            if (GRADIENT) {
                s.by_out[i] = g * v.out;
                s.by_v[i] = g * v.v;
            } else {
                to[i] = v.term;
            }
        }
    }
};

template <class C>
void run(const fd_vlb_terms_args& a) {
    if (a.launch.elements) for_tiles(a.launch, VlbTerms<C>{a});
    if (!a.grad) sum_chunks<C>(a.launch, a.terms, a.workspace, AS_IT_IS);
}

}  // namespace

void vlb_terms(const fd_vlb_terms_args& args) {
    if (args.x0.type == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
