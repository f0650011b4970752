// vlb_terms: a term of the variational bound in one pass, and its gradient by the network's output, kernels/README.md
// section 11.
#include "sums.h"

namespace fastdiff::FD_LEVEL {

// A sample's row of the table; without one, NaN.
template <class C>
FD_HD bool find_row(const fd_vlb_terms_args& a, const Spot& p, VlbRow<C>& row) {
    const int64_t t = a.t[p.b];
    const bool valid = t >= 0 && t < a.rows;
    if (valid)
        row = vlb_row<C>(a.table + t * VLB_COLUMNS);
    else if (p.first())
        report(a.launch, FD_VLB_TERMS);
    return valid;
}

template <class C>
struct Bound {
    C term[4], out[4], v[4];
};

template <bool GRADIENT, bool FIRST, class C>
FD_HD void terms(const VlbRow<C>& row, const C (&x0)[4], const C (&x_t)[4], const C (&out)[4], const C (&logvar)[4],
                 Bound<C>& to) {
    FD_UNROLL
    for (int i = 0; i < 4; ++i) {
        const VlbTerm<C> term = vlb_term<GRADIENT, FIRST>(row, x0[i], x_t[i], out[i], logvar[i]);
        to.term[i] = term.term;
        to.out[i] = term.out;
        to.v[i] = term.v;
    }
}

template <bool GRADIENT, bool PLAIN, class C>
FD_HD void bound(const fd_vlb_terms_args& a, const Tiling& t, const Spot& p, const VlbRow<C>& row, Bound<C>& to) {
    const Span at = {p.b * t.elements + p.e, p.count, t.vector};
    const Span out_at = {p.b * a.output_elements + p.e, p.count, t.vector};
    const bool learned = a.output_elements != t.elements;
    C x0[4], x_t[4], out[4], logvar[4];
    load<PLAIN>(a.x0, at, x0);
    load<PLAIN>(a.x_t, at, x_t);
    load<PLAIN>(a.model_output, out_at, out);
    if (learned) load<PLAIN>(a.model_output, {out_at.at + t.elements, p.count, t.vector}, logvar);
    FD_UNROLL
    for (int i = 0; i < 4; ++i) logvar[i] = learned ? interpolated(row.lo, row.hi, logvar[i]) : row.lo;
    if (row.first)
        terms<GRADIENT, true>(row, x0, x_t, out, logvar, to);
    else
        terms<GRADIENT, false>(row, x0, x_t, out, logvar, to);
}

template <class C, bool PLAIN>
struct VlbTerms {
    fd_vlb_terms_args a;
    Tiling t;

    FD_MEMBER C operator()(const Spot& p) const {
        VlbRow<C> row;
        if (!find_row(a, p, row)) return (C)NAN;
        if (p.count == 0) return 0;
        Bound<C> r;
        bound<false, PLAIN>(a, t, p, row, r);
        return added(r.term, p.count);
    }
};

template <class C, bool LONG, bool PLAIN>
struct VlbTermsGradient {
    fd_vlb_terms_args a;
    Tiling t;

    using Shared = None;
    enum { PHASES = 1, THREADS = Tiling::THREADS };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (p.count == 0) return;
        VlbRow<C> row;
        const bool valid = find_row(a, p, row);
        const C g = valid ? ((const C*)a.grad)[p.b] : (C)NAN;
        Bound<C> r = {};
        if (valid) bound<true, PLAIN>(a, t, p, row, r);
        FD_UNROLL
        for (int i = 0; i < 4; ++i) {
            r.out[i] = g * r.out[i];
            r.v[i] = g * r.v[i];
        }
        const int64_t at = p.b * a.output_elements + p.e;
        store<PLAIN>(a.g_output, {at, p.count, t.vector}, r.out);
        if (a.output_elements != t.elements) store<PLAIN>(a.g_output, {at + t.elements, p.count, t.vector}, r.v);
    }
};

}  // namespace fastdiff::FD_LEVEL

int fd_vlb_terms(const fd_vlb_terms_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l)) return status;
    if (l.batch == 0 || (args->grad && l.elements == 0)) return FD_OK;
    const Arrays arrays = Arrays(l).add(args->x0).add(args->x_t).add(args->model_output).add(args->g_output);
    const Tiling t = tiling(l, arrays.vector);
    if (args->grad) return over_elements<VlbTermsGradient>(FD_VLB_TERMS, *args, args->x0.type, t, arrays.plain);
    return sum_elements<VlbTerms>(FD_VLB_TERMS, *args, args->x0.type, t, arrays.plain, args->terms, args->workspace);
}
