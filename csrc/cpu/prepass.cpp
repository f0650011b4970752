// The prepasses of reverse_step, kernels/README.md section 4: values of a whole sample that a row
// needs first. One thread computes a sample, so the value depends on nothing else. The sample's x0 is
// computed again in every pass and never stored.
#include "kernels.h"
#include "step.h"

namespace fastdiff::FD_LEVEL {

namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class C>
struct Prepass : StepInputs<C> {
    using StepInputs<C>::a;
    using Scratch = StepScratch<C>;

    // f(values, n) for the blocks of one sample, in order; `make` gives a block's values
    template <class Make, class F>
    void blocks(int64_t b, Make make, F f) const {
        for (int64_t e0 = 0; e0 < a.launch.elements; e0 += BLOCK) {
            const int64_t n = smaller(BLOCK, a.launch.elements - e0);
            f(make(Tile{b, b + 1, e0, n}), n);
        }
    }

    template <class Work>
    void samples(Work work) const {
        int64_t threads = smaller(a.launch.threads, a.launch.batch * a.launch.elements / GRAIN);
        threads = threads < 1 ? 1 : smaller(threads, a.launch.batch);
#if defined(_OPENMP)
#pragma omp parallel for num_threads((int)threads) schedule(static) if (threads > 1)
#endif
        for (int64_t k = 0; k < threads; ++k) {
            Scratch s;
            for (int64_t b = a.launch.batch * k / threads; b < a.launch.batch * (k + 1) / threads; ++b)
                work(b, this->row(b, s), s);
        }
    }

    // The sums of a kind of guidance, each in LANES partial sums by element, so that its order is the same at every level.
    void guidance() const {
        constexpr int LANES = 8, SUMS = 3;
        static_assert(BLOCK % LANES == 0, "a lane's elements do not depend on the blocks");
        samples([&](int64_t b, const Row<C>& r, Scratch& s) {
            if (!this->changes_uncond(r) || this->strength(b, r) == 1) return;
            const double momentum = r.columns[GUIDANCE_MOMENTUM], on_x = r.columns[GUIDANCE_X];
            double lanes[SUMS][LANES] = {};
            for (int64_t e0 = 0; e0 < a.launch.elements; e0 += BLOCK) {
                const Tile t{b, b + 1, e0, smaller(BLOCK, a.launch.elements - e0)};
                const C* cond = this->part(t, b, 0, s.loaded[OUT]);
                const C* uncond = this->uncond(t, s.uncond);
                const C* memory = momentum != 0 ? this->memory(t) : nullptr;
                const C* x = on_x != 0 ? load(a.x_t, t.flat(a.launch.elements), t.n(), s.loaded[X]) : nullptr;
                for (int64_t i = 0; i < t.n(); ++i) {
                    const double c = (double)cond[i], u = (double)uncond[i];
                    double v = c, p = u;
                    if (r.kind != ZERO_STAR) {
                        v = memory ? (c - u) + momentum * (double)memory[i] : c - u;
                        p = x ? c + on_x * (double)x[i] : c;
                    }
                    const int lane = (int)(i % LANES);
                    lanes[0][lane] = lanes[0][lane] + v * v;
                    lanes[1][lane] = lanes[1][lane] + v * p;
                    lanes[2][lane] = lanes[2][lane] + p * p;
                }
            }
            double sums[SUMS] = {};
            for (int which = 0; which < SUMS; ++which)
                for (int lane = 0; lane < LANES; ++lane) sums[which] = sums[which] + lanes[which][lane];
            const GuidanceTerms terms = guidance_terms(r.columns, (double)this->strength(b, r), sums[0], sums[1], sums[2]);
            C* to = (C*)a.terms + b;
            for (const double value : {terms.cond, terms.uncond, terms.memory, terms.state}) {
                *to = (C)value;
                to += a.launch.batch;
            }
        });
    }

    template <class Make>
    double deviation(int64_t b, Make make) const {
        const double n = (double)a.launch.elements;
        double sum = 0, squares = 0;
        blocks(b, make, [&](const C* v, int64_t count) {
            for (int64_t i = 0; i < count; ++i) sum += (double)v[i];
        });
        const double mean = sum / n;
        blocks(b, make, [&](const C* v, int64_t count) {
            for (int64_t i = 0; i < count; ++i) squares += ((double)v[i] - mean) * ((double)v[i] - mean);
        });
        return sqrt(squares / (n - 1));
    }

    void rescale() const {
        samples([&](int64_t b, const Row<C>& r, Scratch& s) {
            if (!this->rescales(b, r)) return;
            Row<C> bare = r;
            bare.out_grad = 0;  // the gradient comes after the rescale
            const double cond = deviation(b, [&](const Tile& t) { return this->part(t, b, 0, s.loaded[OUT]); });
            const double guided = deviation(b, [&](const Tile& t) { return this->output(t, bare, nullptr, s); });
            ((C*)a.rescale)[b] = (C)(r.rescale * (cond / guided) + (1 - r.rescale));
        });
    }

    using Bits = FD_LEVEL::Bits<C>;
    static constexpr int WIDTH = sizeof(C) * 8, DIGIT = 11;

    static Bits magnitude(C v) { return bit_cast<Bits>(v) & (~Bits(0) >> 1); }

    void threshold() const {
        samples([&](int64_t b, const Row<C>& r, Scratch& s) {
            if (r.clip_mode != 2) return;
            auto make = [&](const Tile& t) {
                const C* v[OPERANDS] = {};
                v[X] = load(a.x_t, t.flat(a.launch.elements), t.n(), s.loaded[X]);
                if (a.model_output.data) v[OUT] = this->output(t, r, (const C*)a.rescale, s);
                combine(v, r.x0, t.n(), s.loaded[X0]);
                return (const C*)s.loaded[X0];
            };
            const double position = r.clip_ratio * (double)(a.launch.elements - 1);
            const int64_t below = (int64_t)position;
            const Bits low = select(b, make, below);
            const C v0 = bit_cast<C>(low), v1 = bit_cast<C>(follower(b, make, low, below));
            C bound = v0 + (C)(position - (double)below) * (v1 - v0);
            bound = bound > r.clip_bound ? r.clip_bound : bound;
            ((C*)a.threshold)[b] = bound < 1 ? (C)1 : bound;
        });
    }

    // The rank-th smallest magnitude, digit by digit from the top.
    template <class Make>
    Bits select(int64_t b, Make make, int64_t rank) const {
        Bits prefix = 0, known = 0;
        for (int top = WIDTH; top > 0; top -= DIGIT) {
            const int shift = top > DIGIT ? top - DIGIT : 0, width = top - shift;
            int64_t count[1 << DIGIT] = {};
            blocks(b, make, [&](const C* v, int64_t n) {
                for (int64_t i = 0; i < n; ++i) {
                    const Bits m = magnitude(v[i]);
                    if ((m & known) == prefix) ++count[(m >> shift) & ((1 << width) - 1)];
                }
            });
            Bits digit = 0;
            while (rank >= count[digit]) rank -= count[digit++];
            prefix |= digit << shift;
            known |= (Bits)((Bits(1) << width) - 1) << shift;
        }
        return prefix;
    }

    // The next larger magnitude after `low` (of that rank), or `low` if it is the largest.
    template <class Make>
    Bits follower(int64_t b, Make make, Bits low, int64_t rank) const {
        int64_t up_to = 0;
        Bits above = ~Bits(0);
        blocks(b, make, [&](const C* v, int64_t n) {
            for (int64_t i = 0; i < n; ++i) {
                const Bits m = magnitude(v[i]);
                up_to += m <= low;
                above = m > low && m < above ? m : above;
            }
        });
        return rank + 1 < up_to || above == ~Bits(0) ? low : above;
    }
};

}  // namespace

void reverse_step_guidance(const fd_reverse_step_args& args) {
    if (args.x_t.type == FD_FLOAT64)
        Prepass<double>{{args}}.guidance();
    else
        Prepass<float>{{args}}.guidance();
}

void reverse_step_rescale(const fd_reverse_step_args& args) {
    if (args.x_t.type == FD_FLOAT64)
        Prepass<double>{{args}}.rescale();
    else
        Prepass<float>{{args}}.rescale();
}

void reverse_step_threshold(const fd_reverse_step_args& args) {
    if (args.x_t.type == FD_FLOAT64)
        Prepass<double>{{args}}.threshold();
    else
        Prepass<float>{{args}}.threshold();
}

}  // namespace fastdiff::FD_LEVEL
