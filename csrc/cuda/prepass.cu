// The prepasses of reverse_step, kernels/README.md section 4: values of a whole sample that a row needs
// first. A block has a part of a sample; a short sample is one part. How a sample is divided follows from
// its size, so the bits don't depend on the batch. The values are computed again in every pass and never
// stored. The file is over 400 lines because the kernels of one part and of several share their functions.
#include "step.h"
#include "sums.h"

namespace fastdiff::FD_LEVEL {

enum { MOST_THREADS = 1024, PART_BLOCK = 4 * MOST_THREADS };

// How the samples are divided, and where their parts keep what a later kernel reads. A sample of one part
// keeps nothing.
struct Parts {
    int64_t batch, elements, count, span;  // parts of a sample, elements of a part
    void* words;

    FD_MEMBER int64_t begin(int64_t k) const { return k * span; }
    FD_MEMBER int64_t length(int64_t k) const {
        const int64_t left = elements - begin(k);
        return left < 0 ? 0 : left < span ? left : span;
    }

    // mean and squares of the conditional output, then of the guided one; before that the sums of a kind of guidance
    FD_MEMBER double* moments(int64_t b, int64_t k) const { return (double*)words + (b * count + k) * 4; }
    // before digit n: the prefix found so far, and the rank among the values that have it
    FD_MEMBER int64_t* found(int n, int64_t b) const { return (int64_t*)words + (n % 2 * batch + b) * 2; }
    FD_MEMBER uint32_t* counts(int n, int64_t b, int64_t k) const {
        return (uint32_t*)((int64_t*)words + FD_SAMPLE_WORDS * batch) + ((n % 2 * batch + b) * count + k) * 256;
    }
    template <class Bits>
    FD_MEMBER Bits* above(int64_t b, int64_t k) const {
        return (Bits*)((int64_t*)words + (FD_SAMPLE_WORDS + 256 * count) * batch) + b * count + k;
    }
};

static Parts divided(const fd_reverse_step_args& a) {
    const int64_t n = a.launch.elements, batch = a.launch.batch;
    int64_t most = a.parts && batch ? (a.part_words / batch - FD_SAMPLE_WORDS) / FD_PART_WORDS : 1;
    most = most < 1 ? 1 : most > FD_MOST_PARTS ? (int64_t)FD_MOST_PARTS : most;
    const int64_t span = (n + most * PART_BLOCK - 1) / (most * PART_BLOCK) * PART_BLOCK;
    return {batch, n, (n + span - 1) / span, span, a.parts};
}

// f(spot) for the thread's elements of part k of sample b
template <class F>
FD_HD void for_spots(const Parts& parts, int64_t b, int64_t k, int thread, int threads, F f) {
    const int64_t end = parts.begin(k) + parts.length(k);
    for (int64_t e = parts.begin(k) + (int64_t)thread * 4; e < end; e += (int64_t)threads * 4) {
        const int64_t left = end - e;
        f(Spot{b, e, left > 4 ? 4 : (int)left, true, thread});
    }
}

// f = phi*(std(c)/std(out)) + (1 - phi), by sums of squared distances to the mean
template <class C>
FD_HD C rescale_factor(double phi, double cond, double out, int64_t n) {
    return (C)(phi * (sqrt(cond / (double)(n - 1)) / sqrt(out / (double)(n - 1))) + (1 - phi));
}

// What kinds of guidance need of a sample: item 1 of the section
template <class C>
FD_HD void store_terms(const StepInputs<C, false>& in, int64_t b, const double* row, C strength, const double* sums) {
    const GuidanceTerms terms = guidance_terms(row, (double)strength, sums[0], sums[1], sums[2]);
    C* to = (C*)in.a.terms + b;
    const int64_t batch = in.a.launch.batch;
    to[0] = (C)terms.cond, to[batch] = (C)terms.uncond, to[2 * batch] = (C)terms.memory, to[3 * batch] = (C)terms.state;
}

// The terms of rows with a kind of guidance, or the three sums of a part
template <class C>
struct Guidance {
    StepInputs<C, false> in;
    Parts parts;
    int threads;

    enum { SUMS = 3, FOLDS = 5, PHASES = FOLDS + 2, THREADS = MOST_THREADS };
    struct Shared {
        double part[SUMS][MOST_THREADS];
    };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const int64_t b = block.x;
        const Row<C, false> r = in.table_row(b);
        const C g = in.strength(b, r);
        if (!in.changes_uncond(r, g) || block.chunk >= parts.count) return;
        if (k == 0) {
            gather(b, block.chunk, thread, r, s);
        } else if (k <= FOLDS) {
            for (int i = 0; i < SUMS; ++i) fold(s.part[i], thread, threads, k);
        } else if (thread == 0) {
            double sums[SUMS];
            for (int i = 0; i < SUMS; ++i) sums[i] = s.part[i][0];
            if (parts.count == 1) return store_terms(in, b, r.row, g, sums);
            for (int i = 0; i < SUMS; ++i) parts.moments(b, block.chunk)[i] = sums[i];
        }
    }

    FD_MEMBER void gather(int64_t b, int64_t k, int thread, const Row<C, false>& r, Shared& s) const {
        const double momentum = r.row[GUIDANCE_MOMENTUM], on_x = r.row[GUIDANCE_X];
        const bool star = r.row[GUIDANCE_KIND] == ZERO_STAR;
        double sums[SUMS] = {0, 0, 0};
        for_spots(parts, b, k, thread, threads, [&](const Spot& p) {
            C c[4], u[4], m[4] = {}, x[4] = {};
            in.part(p, p.b, 0, c);
            in.part(p, in.a.launch.batch + p.b, 0, u);
            if (in.remembers(r)) in.memory(p, m);
            if (on_x != 0) load<false>(in.a.x_t, in.span(p), x);
            FD_UNROLL
            for (int i = 0; i < 4; ++i) {
                if (i >= p.count) continue;
                double v = (double)c[i], w = (double)u[i];
                if (!star) {
                    w = on_x != 0 ? v + on_x * (double)x[i] : v;
                    v = in.remembers(r) ? (v - (double)u[i]) + momentum * (double)m[i] : v - (double)u[i];
                }
                sums[0] = sums[0] + v * v;
                sums[1] = sums[1] + v * w;
                sums[2] = sums[2] + w * w;
            }
        });
        for (int i = 0; i < SUMS; ++i) s.part[i][thread] = sums[i];
    }
};

// The terms of samples of several parts: a thread adds the sums of a sample's parts, in order.
template <class C>
struct GuidanceCombine {
    StepInputs<C, false> in;
    Parts parts;

    using Shared = None;
    enum { PHASES = 1, THREADS = 32 };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const int64_t b = block.x * THREADS + thread;
        if (b >= parts.batch) return;
        const Row<C, false> r = in.table_row(b);
        const C g = in.strength(b, r);
        if (!in.changes_uncond(r, g)) return;
        double sums[3] = {0, 0, 0};
        for (int64_t k = 0; k < parts.count; ++k)
            for (int i = 0; i < 3; ++i) sums[i] = sums[i] + parts.moments(b, k)[i];
        store_terms(in, b, r.row, g, sums);
    }
};

// That factor, for rows that rescale, or the moments of a part: item 1 of the section
template <class C>
struct Rescale {
    StepInputs<C, false> in;
    Parts parts;
    int threads;

    struct Shared {
        double part[2][MOST_THREADS], mean[2], squares[2];  // of the conditional output and of the guided one
    };
    enum { FOLDS = 5, PASS = 1 + FOLDS, PHASES = 2 * PASS + 1, THREADS = MOST_THREADS };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const int64_t b = block.x;
        const Row<C, false> r = in.table_row(b);
        const C g = in.strength(b, r);
        if (!in.rescales(r, g)) return;
        if (block.chunk >= parts.count) return;
        if (k == 2 * PASS) {
            if (thread != 0) return;
            if (parts.count == 1) {
                ((C*)in.a.rescale)[b] = rescale_factor<C>(r.row[GUIDANCE_RESCALE], s.squares[0], s.squares[1], parts.elements);
                return;
            }
            double* to = parts.moments(b, block.chunk);
            for (int i = 0; i < 2; ++i) to[2 * i] = s.mean[i], to[2 * i + 1] = s.squares[i];
        } else if (k % PASS == 0) {
            gather(k > 0, b, block.chunk, thread, r, g, s);
        } else {
            for (int i = 0; i < 2; ++i) fold(s.part[i], thread, threads, k % PASS);
            if (k % PASS < FOLDS || thread != 0) return;
            for (int i = 0; i < 2; ++i) {
                if (k < PASS)
                    s.mean[i] = s.part[i][0] / (double)parts.length(block.chunk);
                else
                    s.squares[i] = s.part[i][0];
            }
        }
    }

    // Each thread's sum of the values or, if `centered`, of their squared differences from the mean.
    FD_MEMBER void gather(bool centered, int64_t b, int64_t k, int thread, const Row<C, false>& r, C g, Shared& s) const {
        double sum[2] = {0, 0};
        for_spots(parts, b, k, thread, threads, [&](const Spot& p) {
            C value[2][4];
            in.part(p, p.b, 0, value[0]);
            in.guided(p, r, g, value[1]);
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

// The factors of samples of several parts: a thread combines the moments of a sample's parts, in order.
template <class C>
struct RescaleCombine {
    StepInputs<C, false> in;
    Parts parts;

    using Shared = None;
    enum { PHASES = 1, THREADS = 32 };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const int64_t b = block.x * THREADS + thread;
        if (b >= parts.batch) return;
        const Row<C, false> r = in.table_row(b);
        if (!in.rescales(r, in.strength(b, r))) return;
        ((C*)in.a.rescale)[b] = rescale_factor<C>(r.row[GUIDANCE_RESCALE], squares(b, 0), squares(b, 2), parts.elements);
    }

    // distances are to the mean of the first part
    FD_MEMBER double squares(int64_t b, int which) const {
        const double first = parts.moments(b, 0)[which];
        double total = 0, sum = 0;
        for (int64_t k = 0; k < parts.count; ++k) {
            const double* of = parts.moments(b, k) + which;
            const double apart = of[0] - first, weighted = (double)parts.length(k) * apart;
            total = total + weighted;
            sum = sum + (of[1] + weighted * apart);
        }
        return sum - total / (double)parts.elements * total;
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

// What the kernels of the quantile of abs(x0) share: item 4 of the section.
template <class C>
struct Magnitudes {
    StepInputs<C, false> in;
    Parts parts;
    int threads;

    using Bits = typename Magnitude<C>::Bits;

    FD_MEMBER bool wanted(const Row<C, false>& r) const { return r.row && r[CLIP_MODE] == 2; }

    // of the quantile among the sorted values, from 0
    FD_MEMBER double position(const Row<C, false>& r) const {
        const double last = (double)(parts.elements - 1), at = r.row[CLIP_RATIO] * last;
        return at > last ? last : at > 0 ? at : 0.0;
    }

    // f(bits) for the magnitudes of the thread's elements of part k
    template <class F>
    FD_MEMBER void for_magnitudes(int64_t b, int64_t k, const Row<C, false>& r, int thread, F f) const {
        for_spots(parts, b, k, thread, threads, [&](const Spot& p) {
            C x[4] = {}, out[4] = {}, x0[4];
            if (r[X0_X] != 0) load<false>(in.a.x_t, in.span(p), x);
            if (in.x0_reads_output(r)) in.output(p, r, out);
            in.free_x0(r, x, out, x0);
            FD_UNROLL
            for (int i = 0; i < 4; ++i)
                if (i < p.count) f(bit_cast<Bits>(x0[i]) & (~(Bits)0 >> 1));
        });
    }

    // Stores the threshold between the value of the rank below the quantile and the next one.
    FD_MEMBER void store(int64_t b, const Row<C, false>& r, Bits value, Bits next) const {
        const double at = position(r);
        const C low = bit_cast<C>(value), high = bit_cast<C>(next), bound = r[CLIP_BOUND];
        C v = low + (C)(at - (double)(uint32_t)at) * (high - low);
        v = v > bound ? bound : v;
        ((C*)in.a.threshold)[b] = v < 1 ? (C)1 : v;
    }

    // Finds the count that contains the value of this rank; the rank becomes that within it.
    static FD_MEMBER int walk(const uint32_t* counts, int size, uint32_t& rank) {
        int i = 0;
        for (; i < size - 1 && rank >= counts[i]; ++i) rank -= counts[i];
        return i;
    }

    enum { FAN = 16 };

    static FD_MEMBER uint32_t total(const uint32_t* counts) {
        uint32_t sum = 0;
        FD_UNROLL
        for (int i = 0; i < FAN; ++i) sum += counts[i];
        return sum;
    }
};

// The quantile of samples of one part. A radix select on the bit patterns finds the value of rank i digit
// by digit from the top; one more pass finds the next value.
template <class C>
struct Threshold : Magnitudes<C> {
    using Base = Magnitudes<C>;
    using Bits = typename Base::Bits;
    using Base::FAN, Base::for_magnitudes, Base::position, Base::threads, Base::total, Base::walk;
    enum { DIGIT = 11, BINS = 1 << DIGIT, GROUPS = BINS / FAN, SUPERS = GROUPS / FAN };
    enum { WIDTH = sizeof(C) * 8, ROUNDS = (WIDTH + DIGIT - 1) / DIGIT, ROUND = 4, FOLLOW = 1 + ROUNDS * ROUND };
    enum { PHASES = FOLLOW + 2, THREADS = MOST_THREADS };

    struct Shared {
        uint32_t bins[2][BINS], groups[GROUPS], supers[SUPERS];  // one set of bins is cleared while the other is read
        uint32_t rank, up_to;
        Bits low, above;
    };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const int64_t b = block.x;
        const Row<C, false> r = this->in.table_row(b);
        if (!this->wanted(r)) return;
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
            const bool equal = (uint32_t)position(r) + 1 < s.up_to || s.above == ~(Bits)0;
            this->store(b, r, s.low, equal ? s.low : s.above);
        }
    }

    FD_MEMBER void clear(uint32_t (&bins)[BINS], int thread) const {
        for (int i = thread; i < BINS; i += threads) bins[i] = 0;
    }

    // Round n of the select: counts the next digit of the values that have the prefix found so far, adds
    // the counts in groups and groups of groups, and one thread finds the digit from them.
    FD_MEMBER void round(int n, int part, int64_t b, const Row<C, false>& r, int thread, Shared& s) const {
        uint32_t(&bins)[BINS] = s.bins[n % 2];
        const int top = WIDTH - n * DIGIT, shift = top > DIGIT ? top - DIGIT : 0;
        if (part == 0) {
            const Bits known = n == 0 ? 0 : ~(Bits)0 << top, digit = ((Bits)1 << (top - shift)) - 1, low = s.low;
            for_magnitudes(b, 0, r, thread, [&](Bits m) {
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

    FD_MEMBER void follow(int64_t b, const Row<C, false>& r, int thread, Shared& s) const {
        uint32_t up_to = 0;
        Bits above = ~(Bits)0;
        const Bits low = s.low;
        for_magnitudes(b, 0, r, thread, [&](Bits m) {
            up_to += m <= low;
            above = m > low && m < above ? m : above;
        });
        count_up(s.up_to, up_to);
        lower(s.above, above);
    }
};

// Several parts: digits of 8 bits, each counted by a kernel over all parts, which begins by adding the
// counts of the digit before. So nothing has to be zero before.
template <class C>
struct ThresholdDigits : Magnitudes<C> {
    using Base = Magnitudes<C>;
    using Bits = typename Base::Bits;
    using Base::FAN, Base::parts, Base::threads, Base::total, Base::walk;
    enum { BINS = 256, GROUPS = BINS / FAN, DIGITS = sizeof(C) };

    struct Before {
        uint32_t counts[BINS], groups[GROUPS];
        Bits low;  // the digits found so far, in their place
        uint32_t rank;
        int digit;
    };

    // Three phases after which s has what digit n - 1 left: the value's digits up to it and the rank among
    // those that share them; without one, the start.
    FD_MEMBER void before(int k, int n, int64_t b, const Row<C, false>& r, int thread, Before& s) const {
        if (n > 0 && k == 0) {
            for (int i = thread; i < BINS; i += threads) {
                uint32_t sum = 0;
                for (int64_t part = 0; part < parts.count; ++part) sum += parts.counts(n - 1, b, part)[i];
                s.counts[i] = sum;
            }
        } else if (n > 0 && k == 1) {
            for (int i = thread; i < GROUPS; i += threads) s.groups[i] = total(s.counts + i * FAN);
        } else if (k == 2 && thread == 0) {
            s.low = 0;
            s.rank = (uint32_t)this->position(r);
            if (n == 0) return;
            s.rank = (uint32_t)parts.found(n - 1, b)[1];
            const int group = walk(s.groups, GROUPS, s.rank);
            s.digit = group * FAN + walk(s.counts + group * FAN, FAN, s.rank);
            s.low = (Bits)parts.found(n - 1, b)[0] | (Bits)s.digit << (8 * (DIGITS - n));
        }
    }
};

template <class C>
struct ThresholdCount : ThresholdDigits<C> {
    using Base = ThresholdDigits<C>;
    using Bits = typename Base::Bits;
    using Base::BINS, Base::DIGITS, Base::parts, Base::threads;
    int n;  // the digit to count
    enum { PHASES = 5, THREADS = MOST_THREADS };

    ThresholdCount(const Base& base, int digit) : Base(base), n(digit) {}

    struct Shared {
        typename Base::Before before;
        uint32_t bins[BINS];
        Bits above;  // the smallest value with a larger prefix, at the last digit
    };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const int64_t b = block.x, part = block.chunk;
        const Row<C, false> r = this->in.table_row(b);
        if (!this->wanted(r) || part >= parts.count) return;
        const int shift = 8 * (DIGITS - 1 - n);
        if (k < 3) {
            this->before(k, n, b, r, thread, s.before);
            if (k > 0) return;
            for (int i = thread; i < BINS; i += threads) s.bins[i] = 0;
            if (thread == 0) s.above = ~(Bits)0;
        } else if (k == 3) {
            const Bits low = s.before.low, known = n == 0 ? 0 : ~(Bits)0 << (shift + 8);
            Bits above = ~(Bits)0;
            this->for_magnitudes(b, part, r, thread, [&](Bits m) {
                if ((m & known) == low) count_up(s.bins[(m >> shift) & 255], 1);
                above = (m & known) > low && m < above ? m : above;
            });
            if (shift == 0) lower(s.above, above);
        } else {
            for (int i = thread; i < BINS; i += threads) parts.counts(n, b, part)[i] = s.bins[i];
            if (thread != 0) return;
            parts.template above<Bits>(b, part)[0] = s.above;
            if (part != 0) return;
            parts.found(n, b)[0] = (int64_t)s.before.low;
            parts.found(n, b)[1] = s.before.rank;
        }
    }
};

template <class C>
struct ThresholdFinish : ThresholdDigits<C> {
    using Base = ThresholdDigits<C>;
    using Bits = typename Base::Bits;
    using Base::BINS, Base::DIGITS, Base::parts;
    enum { PHASES = 4, THREADS = 256 };

    explicit ThresholdFinish(const Base& base) : Base(base) {}

    struct Shared {
        typename Base::Before before;
    };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const int64_t b = block.x;
        const Row<C, false> r = this->in.table_row(b);
        if (!this->wanted(r)) return;
        if (k < 3)
            this->before(k, DIGITS, b, r, thread, s.before);
        else if (thread == 0)
            this->store(b, r, s.before.low, next(b, s.before));
    }

    // The next value in order: an equal one, the next with the same other digits, or the smallest after those.
    FD_MEMBER Bits next(int64_t b, const typename Base::Before& s) const {
        if (s.rank + 1 < s.counts[s.digit]) return s.low;
        for (int i = s.digit + 1; i < BINS; ++i)
            if (s.counts[i]) return (s.low & ~(Bits)255) | (Bits)i;
        Bits above = ~(Bits)0;
        for (int64_t part = 0; part < parts.count; ++part) {
            const Bits of = parts.template above<Bits>(b, part)[0];
            above = of < above ? of : above;
        }
        return above == ~(Bits)0 ? s.low : above;
    }
};

template <class C>
static int run_guidance(const fd_reverse_step_args& a, const StepInputs<C, false>& in, const Parts& parts, int threads) {
    const Grid grid = {a.launch.batch, parts.count, threads};
    if (int status = launch(FD_REVERSE_STEP_GUIDANCE, a.launch, grid, Guidance<C>{in, parts, threads})) return status;
    if (parts.count == 1) return FD_OK;
    const GuidanceCombine<C> combine = {in, parts};
    return launch(FD_REVERSE_STEP_GUIDANCE, a.launch,
                  {(a.launch.batch + combine.THREADS - 1) / combine.THREADS, 1, combine.THREADS}, combine);
}

template <class C>
static int run_rescale(const fd_reverse_step_args& a, const StepInputs<C, false>& in, const Parts& parts, int threads) {
    const Grid grid = {a.launch.batch, parts.count, threads};
    if (int status = launch(FD_REVERSE_STEP_RESCALE, a.launch, grid, Rescale<C>{in, parts, threads})) return status;
    if (parts.count == 1) return FD_OK;
    const RescaleCombine<C> combine = {in, parts};
    return launch(FD_REVERSE_STEP_RESCALE, a.launch, {(a.launch.batch + combine.THREADS - 1) / combine.THREADS, 1, combine.THREADS},
                  combine);
}

template <class C>
static int run_threshold(const fd_reverse_step_args& a, const StepInputs<C, false>& in, const Parts& parts, int threads) {
    if (parts.count == 1)
        return launch(FD_REVERSE_STEP_THRESHOLD, a.launch, {a.launch.batch, 1, threads}, Threshold<C>{{in, parts, threads}});
    const ThresholdDigits<C> count = {{in, parts, threads}};
    for (int n = 0; n < (int)sizeof(C); ++n)
        if (int status = launch(FD_REVERSE_STEP_THRESHOLD, a.launch, {a.launch.batch, parts.count, threads},
                                ThresholdCount<C>(count, n)))
            return status;
    const ThresholdDigits<C> finish = {{in, parts, 256}};
    return launch(FD_REVERSE_STEP_THRESHOLD, a.launch, {a.launch.batch, 1, 256}, ThresholdFinish<C>(finish));
}

template <class C>
static int run_both(const fd_reverse_step_args& a, const Tiling& t) {
    int threads = 32;
    while (threads < MOST_THREADS && (int64_t)threads * 4 < a.launch.elements) threads *= 2;
    const StepInputs<C, false> in = {a, t, given_operands(a)};
    const Parts parts = divided(a);
    const bool guided = a.model_output.data && a.guidance;
    if (a.terms && guided)
        if (int status = run_guidance<C>(a, in, parts, threads)) return status;
    if (a.rescale && guided)
        if (int status = run_rescale<C>(a, in, parts, threads)) return status;
    return a.threshold ? run_threshold<C>(a, in, parts, threads) : FD_OK;
}

int run_prepasses(const fd_reverse_step_args& a, const Tiling& t) {
    if (a.launch.elements == 0) return FD_OK;
    if (a.threshold && a.launch.elements > UINT32_MAX)
        return fail(FD_VALUE_ERROR, "expected at most %u elements in a sample with a dynamic threshold, got %lld.", UINT32_MAX,
                    (long long)a.launch.elements);
    return a.x_t.type == FD_FLOAT64 ? run_both<double>(a, t) : run_both<float>(a, t);
}

}  // namespace fastdiff::FD_LEVEL
