// The formulas of the ops (kernels/README.md, sections 4 to 13) for one element, made of the functions
// of arithmetic.h and under its rules: written once for every CPU level and for CUDA, branch-free; C is
// the compute type.
#pragma once

#include "fastdiff/arithmetic.h"
#include "fastdiff/schema.h"

namespace fastdiff::FD_LEVEL {

// ---- section 4: pieces of a row

// by comparison and select, so that NaN passes
template <class C>
FD_HD C held(C x, C bound) {
    const C v = select(x > bound, bound, x);
    return select(v < -bound, -bound, v);
}

template <class C>
FD_HD C guidance_strength(C gamma, C weight) {
    return weight == 1 ? gamma : 1 + weight * (gamma - 1);
}

// What a kind of guidance takes as the unconditional output: cond*c + uncond*u + memory*m + state*x.
struct GuidanceTerms {
    double cond, uncond, memory, state;
};

// By the sums v·v, v·p and p·p over a sample: of (c, u) for ZERO_STAR, else of the difference and of what it is projected on.
FD_HD GuidanceTerms guidance_terms(const double* row, double strength, double vv, double vp, double pp) {
    const int kind = (int)row[GUIDANCE_KIND];
    if (kind == ZERO_STAR) return {0, vp / (pp + 1e-8), 0, 0};
    const double bound = row[GUIDANCE_BOUND], norm = sqrt(vv);
    const double k = bound > 0 && norm > bound ? bound / norm : 1.0;
    const double along = 1.0 - row[GUIDANCE_PARALLEL];
    const double e = along == 0 || pp == 0 ? 0.0 : k * (along * (vp / pp));
    const double on_m = k * row[GUIDANCE_MOMENTUM], on_x = e * row[GUIDANCE_X];
    if (kind == PROJECTED || kind == KEEPING) return {(1.0 - k) + e, k, 0.0 - on_m, on_x};
    const double g = strength, rest = 1.0 - g;
    return {g * ((k - e) - 1.0) / rest, (1.0 - g * k) / rest, g * on_m / rest, 0.0 - g * on_x / rest};
}

template <class C>
FD_HD C interpolated(C lo, C hi, C v) {
    return lo + (hi - lo) * ((v + 1) * (C)0.5);
}

// ---- section 13: log N(x_s; mean, std²) of an element but for its constants, d = x_s - mean

template <class C>
FD_HD C log_prob_term(C d, C inverse) {
    const C y = d * inverse;
    return (C)0.5 * (y * y);
}

// with learned variance; h is half of its logarithm
template <class C>
FD_HD C log_prob_term(C d, C inverse, C h) {
    const C y = (d * inverse) * exponential(-h);
    return (C)0.5 * (y * y) + h;
}

// The inverse of the standard deviation |c|, in the compute type.
template <class C>
FD_HD C inverse_deviation(C c) {
    return (C)(1.0 / fabs((double)c));
}

// A sample's log-probability from the sum of its n terms.
FD_HD double log_prob(double sum, double c, int64_t n) {
    return (-sum - (double)n * log(fabs(c))) - (double)n * 0.91893853320467274178;
}

// ---- section 5

struct Posterior {
    double x0, x, variance;
};

FD_HD Posterior posterior(const double* alphas_cumprod, int64_t t) {
    const double a = alphas_cumprod[t], p = t > 0 ? alphas_cumprod[t - 1] : 1.0;
    const double alpha = a / p, beta = 1.0 - alpha, left = (1.0 - p) / (1.0 - a);
    return {sqrt(p) * (beta / (1.0 - a)), sqrt(alpha) * left, beta * left};
}

FD_HD double posterior_log_variance(const double* alphas_cumprod, int64_t t, int64_t times) {
    return times > 1 ? log(posterior(alphas_cumprod, t > 1 ? t : 1).variance) : log(1.0 - alphas_cumprod[0]);
}

// ---- section 9

template <class C>
struct KlGradient {
    C mean1, logvar1, logvar2;  // that of mean2 is -mean1
};

template <class C>
FD_HD C kl_term(C d, C m, C inverse2) {
    return (C)0.5 * (exp_minus_1_minus(d) + (m * m) * inverse2);
}

template <class C>
FD_HD KlGradient<C> kl_gradient(C d, C m, C inverse2) {
    const C e = exp_minus_1(d);
    return {m * inverse2, (C)0.5 * e, (C)-0.5 * (e + (m * m) * inverse2)};
}

// ---- section 10

template <class C>
struct Narrow;
template <>
struct Narrow<float> {
    static constexpr float WIDTH = 0.25f, Y = 0.5f;
};
template <>
struct Narrow<double> {
    static constexpr double WIDTH = 1.0 / 32, Y = 1.0 / 16;
};

template <class C>
struct Bin {
    C nll, mean, log_scale;  // the term and, with GRADIENT, its derivatives
};

// Σ_k (-hh/2)^k/k! J_k(yy) - 1, J_k = Σ_j yy^j/((2j)! (2k + 2j + 1))
FD_HD float narrow_series(float hh, float yy) {
    const float j0[] = {1.0f / 6, 1.0f / 120, 1.0f / 5040};
    const float j1[] = {1.0f / 3, 1.0f / 10, 1.0f / 168, 1.0f / 6480};
    const float j2[] = {1.0f / 5, 1.0f / 14, 1.0f / 216, 1.0f / 7920};
    float s = horner(j2, yy);
    s = horner(j1, yy) + (hh * (-0.5f / 2)) * s;
    return horner(j0, yy) * yy + (hh * -0.5f) * s;
}

FD_HD double narrow_series(double hh, double yy) {
    const double j0[] = {1.0 / 6, 1.0 / 120, 1.0 / 5040, 1.0 / 362880};
    const double j1[] = {1.0 / 3, 1.0 / 10, 1.0 / 168, 1.0 / 6480, 1.0 / 443520};
    const double j2[] = {1.0 / 5, 1.0 / 14, 1.0 / 216, 1.0 / 7920, 1.0 / 524160};
    const double j3[] = {1.0 / 7, 1.0 / 18, 1.0 / 264, 1.0 / 9360, 1.0 / 604800};
    const double j4[] = {1.0 / 9, 1.0 / 22, 1.0 / 312, 1.0 / 10800, 1.0 / 685440};
    double s = horner(j4, yy);
    s = horner(j3, yy) + (hh * (-0.5 / 4)) * s;
    s = horner(j2, yy) + (hh * (-0.5 / 3)) * s;
    s = horner(j1, yy) + (hh * (-0.5 / 2)) * s;
    return horner(j0, yy) * yy + (hh * -0.5) * s;
}

// u/255 - mean to full relative precision: high*255 is exact, so the quotient is known to twice the digits
template <class C>
FD_HD C level_minus(C u, C mean) {
    const C high = bit_cast<C>((Bits<C>)(bit_cast<Bits<C>>(u / 255) & ~(Bits<C>)0xFFF));
    return (high - mean) + (u - high * 255) * (C)(1.0 / 255);
}

template <bool GRADIENT, class C>
FD_HD Bin<C> discretized(C x0, C mean, C log_scale) {
    constexpr C half_log_2pi = (C)0.91893853320467274178, density = (C)0.39894228040143267794;
    C k = (C)127.5 * (x0 + 1);
    k = select(k > 255, (C)255, k);
    k = select(k < 0, (C)0, k);
    constexpr C magic = sizeof(C) == 4 ? (C)12582912 : (C)6755399441055744;  // rounds to an integer, ties to even
    k = (k + magic) - magic;
    const C center = level_minus(2 * k - 255, mean), inverse = exponential(-log_scale);
    const bool first = k == 0, last = k == 255, end = first | last, flip = first | (!last & (center < 0));
    const C c = select(flip, -center, center), w = inverse * (C)(2.0 / 255), h = (C)0.5 * w, m = c * inverse;
    const C a = (c - (C)(1.0 / 255)) * inverse, b = m + h;
    const C y = m * h, e = select(end, (C)-1, exp_minus_1(-2 * y));
    const bool narrow = !end & (w < Narrow<C>::WIDTH) & (select(y < 0, -y, y) < Narrow<C>::Y), tail = a >= 0;

    const C series = narrow_series(h * h, y * y);
    const C mills_a = mills(select(a < 0, -a, a)), mills_b = mills(select(b < 0, (C)0, b));
    const C wide = select(end, mills_a, (mills_a - mills_b) - mills_b * e);
    const C fa = exponential((C)-0.5 * a * a) * density, fb = select(end, (C)0, exponential((C)-0.5 * b * b) * density);
    const C q = mills_a * fa + mills_b * fb;
    const C log_narrow = (C)0.5 * m * m + half_log_2pi + (log_scale - (C)-4.848116364598481) - log_1_plus(series);
    const C log_tail = (C)0.5 * a * a + half_log_2pi - logarithm(wide);
    const C log_middle = -log_1_plus(-q);
    Bin<C> r = {select(narrow, log_narrow, select(tail, log_tail, log_middle)), 0, 0};
    r.nll = select(m != m, m, r.nll);
    if (GRADIENT) {
        const C d = select(narrow, w * (1 + series) * exponential((C)0.5 * h * h - y), wide);
        const C inside = 1 - q;
        const C u_outer = e / d, v_outer = select(end, -a, a * e + w * (1 + e)) / d;
        const C u_inner = (fb - fa) / inside, v_inner = (select(fb == 0, (C)0, b * fb) - select(fa == 0, (C)0, a * fa)) / inside;
        const C u = select(narrow | tail, u_outer, u_inner), v = select(narrow | tail, v_outer, v_inner);
        r.mean = select(m != m, m, select(flip, -inverse, inverse) * u);
        r.log_scale = select(m != m, m, v);
    }
    return r;
}

// ---- section 11

enum VlbColumn { VLB_X0_X, VLB_X0_OUT, VLB_CLIP, VLB_MEAN_X0, VLB_MEAN_X, VLB_LOGVAR_Q, VLB_LO, VLB_HI, VLB_FIRST, VLB_COLUMNS };

template <class C>
struct VlbRow {
    C x0_x, x0_out, clip, mean_x0, mean_x, logvar_q, lo, hi;
    bool first;
};

template <class C>
FD_HD VlbRow<C> vlb_row(const double* r) {
    return {(C)r[VLB_X0_X],     (C)r[VLB_X0_OUT], (C)r[VLB_CLIP], (C)r[VLB_MEAN_X0], (C)r[VLB_MEAN_X],
            (C)r[VLB_LOGVAR_Q], (C)r[VLB_LO],     (C)r[VLB_HI],   r[VLB_FIRST] != 0};
}

template <class C>
struct VlbTerm {
    C term, out, v;  // the term and, with GRADIENT, its derivatives by the network's two halves
};

template <bool GRADIENT, bool FIRST, class C>
FD_HD VlbTerm<C> vlb_term(const VlbRow<C>& r, C x0, C x_t, C out, C logvar) {
    const C free = r.x0_x * x_t + r.x0_out * out, predicted = held(free, r.clip);
    const C span = (C)0.5 * (r.hi - r.lo);
    VlbTerm<C> t = {};
    C by_x0, by_logvar;
    if (FIRST) {
        const Bin<C> bin = discretized<GRADIENT>(x0, r.mean_x0 * predicted + r.mean_x * x_t, (C)0.5 * logvar);
        t.term = bin.nll;
        by_x0 = r.mean_x0 * bin.mean;
        by_logvar = (C)0.5 * bin.log_scale;
    } else {
        const C d = r.logvar_q - logvar, m = r.mean_x0 * (x0 - predicted), inverse = exponential(-logvar);
        t.term = kl_term(d, m, inverse);
        if (!GRADIENT) return t;
        const KlGradient<C> g = kl_gradient(d, m, inverse);
        by_x0 = -(r.mean_x0 * g.mean1);
        by_logvar = g.logvar2;
    }
    t.out = select((free > r.clip) | (free < -r.clip), (C)0, r.x0_out * by_x0);
    t.v = span * by_logvar;
    return t;
}

// ---- section 12

// z/(1 + e^-z). In float32 e^-z is that of section 1.1 with the signs turned round, which saves a
// negation; where it is 0, 1 + e^-z is 1 and the result z.
FD_HD float silu(float z) {
    const float e[] = {0x1.0p-1f, 0x1.55549p-3f, 0x1.55545ep-5f, 0x1.123b46p-7f, 0x1.6db414p-10f};
    // above, the quotient is not used
    const float t = 12582912.0f - z * 0x1.715476p+0f, k = t - 12582912.0f;
    const float r = (z + k * 0x1.62e4p-1f) + k * 0x1.7f7d1cp-20f;
    float p = e[3] - r * e[4];
    FD_UNROLL
    for (int i = 2; i >= 0; --i) p = e[i] - p * r;
    const float y = 1.0f + ((r * r) * p - r);
    const float power = float_bits(bits_of(y) + (bits_of(t) << 23));
    return select(z < -EXP_HIGH, 0.0f, select(z < -EXP_LOW, z / (1.0f + power), z));
}
FD_HD double silu(double z) { return z / (1.0 + exp(-z)); }

}  // namespace fastdiff::FD_LEVEL
