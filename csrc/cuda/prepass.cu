// The prepasses of reverse_step, kernels/README.md section 4: values of a whole sample that a row needs
// first. Each sample has one block at any batch size. The sample's values are computed again in every
// pass and never stored.
#include "step.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

enum { MOST_THREADS = 1024 };

// f(spot) for the thread's elements of sample b
template <class F>
FD_HD void for_spots(const Tiling& t, int64_t b, int thread, int threads, F f) {
    for (int64_t e = (int64_t)thread * 4; e < t.elements; e += (int64_t)threads * 4) {
        const int64_t left = t.elements - e;
        f(Spot{b, e, left > 4 ? 4 : (int)left, true, thread});
    }
}

// f = phi*(std(c)/std(out)) + (1 - phi): item 1 of the section, for rows that rescale
template <class C>
struct Rescale {
    StepInputs<C, false> in;
    int threads;

    struct Shared {
        double part[2][MOST_THREADS], mean[2], variance[2];  // of the conditional output and of the guided one
    };
    enum { FOLDS = 5, PASS = 1 + FOLDS, PHASES = 2 * PASS + 1, THREADS = MOST_THREADS };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const int64_t b = block.x;
        const Row<C, false> r = in.table_row(b);
        const C g = in.strength(b, r);
        if (!in.rescales(r, g)) return;
        const int64_t n = in.t.elements;
        if (k == 2 * PASS) {
            if (thread != 0) return;
            const double phi = r.row[GUIDANCE_RESCALE];
            ((C*)in.a.rescale)[b] = (C)(phi * (sqrt(s.variance[0]) / sqrt(s.variance[1])) + (1 - phi));
        } else if (k % PASS == 0) {
            gather(k > 0, b, thread, g, s);
        } else {
            for (int i = 0; i < 2; ++i) fold(s.part[i], thread, threads, k % PASS);
            if (k % PASS < FOLDS || thread != 0) return;
            for (int i = 0; i < 2; ++i) {
                if (k < PASS)
                    s.mean[i] = s.part[i][0] / (double)n;
                else
                    s.variance[i] = s.part[i][0] / (double)(n - 1);
            }
        }
    }

    // Each thread's sum of the values or, if `centered`, of their squared differences from the mean.
    FD_MEMBER void gather(bool centered, int64_t b, int thread, C g, Shared& s) const {
        double sum[2] = {0, 0};
        for_spots(in.t, b, thread, threads, [&](const Spot& p) {
            C value[2][4];
            in.part(p, p.b, 0, value[0]);
            in.guided(p, g, value[1]);
            FD_UNROLL
            for (int which = 0; which < 2; ++which) {
                FD_UNROLL
                for (int i = 0; i < 4; ++i) {
                    const double v = (double)value[which][i], apart = v - s.mean[which];
                    if (i < p.count) sum[which] += centered ? apart * apart : v;
                }
            }
        });
        for (int which = 0; which < 2; ++which) s.part[which][thread] = sum[which];
    }
};

template <class C>
struct Magnitude;
template <>
struct Magnitude<float> {
    using Bits = uint32_t;
};
template <>
struct Magnitude<double> {
    using Bits = unsigned long long;
};

// Shared memory that all threads of a block modify. It holds integers, so the order has no effect.
FD_HD void count_up(uint32_t& to, uint32_t by) {
#if defined(__CUDA_ARCH__)
    atomicAdd(&to, by);
#else
    to += by;
#endif
}
template <class Bits>
FD_HD void lower(Bits& to, Bits value) {
#if defined(__CUDA_ARCH__)
    atomicMin(&to, value);
#else
    to = value < to ? value : to;
#endif
}

// The quantile of abs(x0) for dynamic thresholding: item 4 of the section. A radix select on the bit
// patterns finds the value of rank i digit by digit from the top; one more pass finds the next value.
template <class C>
struct Threshold {
    StepInputs<C, false> in;
    int threads;

    using Bits = typename Magnitude<C>::Bits;
    enum { DIGIT = 11, BINS = 1 << DIGIT, FAN = 16, GROUPS = BINS / FAN, SUPERS = GROUPS / FAN };
    enum { WIDTH = sizeof(C) * 8, ROUNDS = (WIDTH + DIGIT - 1) / DIGIT, ROUND = 4, FOLLOW = 1 + ROUNDS * ROUND };
    enum { PHASES = FOLLOW + 2, THREADS = MOST_THREADS };

    struct Shared {
        uint32_t bins[2][BINS], groups[GROUPS], supers[SUPERS];  // one set of bins is cleared while the other is read
        uint32_t rank, up_to;
        Bits low, above;
    };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const int64_t b = block.x;
        const Row<C, false> r = in.table_row(b);
        if (!r.row || r[CLIP_MODE] != 2) return;
        if (k == 0) {
            clear(s.bins[0], thread);
            if (thread != 0) return;
            s.rank = (uint32_t)position(r);
            s.up_to = 0;
            s.low = 0;
            s.above = ~(Bits)0;
        } else if (k < FOLLOW) {
            round((k - 1) / ROUND, (k - 1) % ROUND, b, r, thread, s);
        } else if (k == FOLLOW) {
            follow(b, r, thread, s);
        } else if (thread == 0) {
            finish(b, r, s);
        }
    }

    // of the quantile among the sorted values, from 0
    FD_MEMBER double position(const Row<C, false>& r) const {
        const double last = (double)(in.t.elements - 1), at = r.row[CLIP_RATIO] * last;
        return at > last ? last : at > 0 ? at : 0.0;
    }

    FD_MEMBER void clear(uint32_t (&bins)[BINS], int thread) const {
        for (int i = thread; i < BINS; i += threads) bins[i] = 0;
    }

    // f(bits) for the magnitudes of the thread's elements
    template <class F>
    FD_MEMBER void for_magnitudes(int64_t b, const Row<C, false>& r, int thread, F f) const {
        for_spots(in.t, b, thread, threads, [&](const Spot& p) {
            C x[4] = {}, out[4] = {}, x0[4];
            if (r[X0_X] != 0) load<false>(in.a.x_t, in.span(p), x);
            if (in.x0_reads_output(r)) in.output(p, r, out);
            in.free_x0(r, x, out, x0);
            FD_UNROLL
            for (int i = 0; i < 4; ++i)
                if (i < p.count) f(bit_cast<Bits>(x0[i]) & (~(Bits)0 >> 1));
        });
    }

    // Round n of the select: counts the next digit of the values that have the prefix found so far, adds
    // the counts in groups and groups of groups, and one thread finds the digit from them.
    FD_MEMBER void round(int n, int part, int64_t b, const Row<C, false>& r, int thread, Shared& s) const {
        uint32_t(&bins)[BINS] = s.bins[n % 2];
        const int top = WIDTH - n * DIGIT, shift = top > DIGIT ? top - DIGIT : 0;
        if (part == 0) {
            const Bits known = n == 0 ? 0 : ~(Bits)0 << top, digit = ((Bits)1 << (top - shift)) - 1, low = s.low;
            for_magnitudes(b, r, thread, [&](Bits m) {
                if ((m & known) == low) count_up(bins[(m >> shift) & digit], 1);
            });
        } else if (part == 1) {
            for (int i = thread; i < GROUPS; i += threads) s.groups[i] = total(bins + i * FAN);
        } else if (part == 2) {
            clear(s.bins[(n + 1) % 2], thread);
            for (int i = thread; i < SUPERS; i += threads) s.supers[i] = total(s.groups + i * FAN);
        } else if (thread == 0) {
            uint32_t rank = s.rank;
            const int super = walk(s.supers, SUPERS, rank);
            const int group = super * FAN + walk(s.groups + super * FAN, FAN, rank);
            const int bin = group * FAN + walk(bins + group * FAN, FAN, rank);
            s.low |= (Bits)bin << shift;
            s.rank = rank;
        }
    }

    static FD_MEMBER uint32_t total(const uint32_t* counts) {
        uint32_t sum = 0;
        FD_UNROLL
        for (int i = 0; i < FAN; ++i) sum += counts[i];
        return sum;
    }

    // Finds the count that contains the value of this rank; the rank becomes that within it.
    static FD_MEMBER int walk(const uint32_t* counts, int size, uint32_t& rank) {
        int i = 0;
        for (; i < size - 1 && rank >= counts[i]; ++i) rank -= counts[i];
        return i;
    }

    FD_MEMBER void follow(int64_t b, const Row<C, false>& r, int thread, Shared& s) const {
        uint32_t up_to = 0;
        Bits above = ~(Bits)0;
        const Bits low = s.low;
        for_magnitudes(b, r, thread, [&](Bits m) {
            up_to += m <= low;
            above = m > low && m < above ? m : above;
        });
        count_up(s.up_to, up_to);
        lower(s.above, above);
    }

    FD_MEMBER void finish(int64_t b, const Row<C, false>& r, Shared& s) const {
        const double at = position(r);
        const uint32_t rank = (uint32_t)at;
        const C low = bit_cast<C>(s.low), bound = r[CLIP_BOUND];
        const C high = rank + 1 < s.up_to || s.above == ~(Bits)0 ? low : bit_cast<C>(s.above);
        C v = low + (C)(at - (double)rank) * (high - low);
        v = v > bound ? bound : v;
        ((C*)in.a.threshold)[b] = v < 1 ? (C)1 : v;
    }
};

template <class C>
static int run_both(const fd_reverse_step_args& a, const Tiling& t) {
    int threads = 32;
    while (threads < MOST_THREADS && (int64_t)threads * 4 < a.launch.elements) threads *= 2;
    const Grid grid = {a.launch.batch, 1, threads};
    const StepInputs<C, false> in = {a, t, given_operands(a)};
    if (a.rescale && a.model_output.data && a.guidance)
        if (int status = launch(FD_REVERSE_STEP_RESCALE, a.launch, grid, Rescale<C>{in, threads})) return status;
    return a.threshold ? launch(FD_REVERSE_STEP_THRESHOLD, a.launch, grid, Threshold<C>{in, threads}) : FD_OK;
}

int run_prepasses(const fd_reverse_step_args& a, const Tiling& t) {
    if (a.launch.elements == 0) return FD_OK;
    if (a.threshold && a.launch.elements > UINT32_MAX)
        return fail(FD_VALUE_ERROR, "expected at most %u elements in a sample with a dynamic threshold, got %lld.", UINT32_MAX,
                    (long long)a.launch.elements);
    return a.x_t.type == FD_FLOAT64 ? run_both<double>(a, t) : run_both<float>(a, t);
}

}  // namespace fastdiff::FD_LEVEL
