// Sums over a sample, kernels/README.md section 7: every thread adds its four terms, the sums of a
// chunk's threads are folded by quarters in shared memory, and a second small kernel adds the chunks in
// order in float64. The order depends on the sample's size only, so its sum has the same bits in any
// batch.
#pragma once

#include "memory.h"

namespace fastdiff::FD_LEVEL {

// Step k = 1, 2, … of adding up `width` values (a power of two) in place: part[0] is their sum once 4^k >= width.
template <class C>
FD_HD void fold(C* part, int lane, int width, int k) {
    width >>= 2 * (k - 1);
    const int quarter = width > 4 ? width / 4 : 1;
    if (lane >= quarter) return;
    C sum = part[lane];
    FD_UNROLL
    for (int i = 1; i < 4; ++i)
        if (i * quarter < width) sum = sum + part[lane + i * quarter];
    part[lane] = sum;
}

// The result of a sample's sum: the sum, or for a mean weight * (sum / elements).
template <class C>
struct Finish {
    void* out;           // C [batch]
    const void* weight;  // C [batch] or null: 1
    int64_t mean_of;     // 0: not a mean

    FD_MEMBER void write(int64_t b, double sum) const {
        if (mean_of) sum = (weight ? (double)((const C*)weight)[b] : 1.0) * (sum / (double)mean_of);
        ((C*)out)[b] = (C)sum;
    }
};

// Terms: C operator()(const Spot&) const, the sum of a thread's terms. End: void write(b, sum) const, which
// makes a result of a sample's sum.
template <class C, class Terms, class End, bool LONG>
struct Sum {
    Terms terms;
    Tiling t;
    End finish;
    C* workspace;  // [batch, chunks], null with one chunk

    struct Shared {
        C part[Tiling::THREADS];
    };
    enum { FOLDS = 4, PHASES = 1 + FOLDS, THREADS = Tiling::THREADS };
    static_assert(1 << 2 * FOLDS == THREADS, "each fold leaves a quarter");

    FD_MEMBER void phase(int k, Block block, int thread, Shared& s) const {
        const Spot p = spot<LONG>(t, block, thread);
        if (k == 0) {
            s.part[thread] = p.live ? terms(p) : (C)0;
            return;
        }
        fold(s.part + (thread - p.lane), p.lane, 1 << t.shift, k);
        if (k < FOLDS || !p.live || p.lane != 0) return;
        const C sum = s.part[thread];
        const int64_t chunks = (t.elements + FD_CHUNK - 1) / FD_CHUNK;
        if (!workspace)
            finish.write(p.b, sum);
        else if (block.chunk < chunks)
            workspace[p.b * chunks + block.chunk] = sum;
    }
};

// The second pass: one thread per sample.
template <class C, class End>
struct SumChunks {
    const C* workspace;
    int64_t batch, chunks;
    End finish;

    using Shared = None;
    enum { PHASES = 1, THREADS = 32 };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const int64_t b = block.x * THREADS + thread;
        if (b >= batch) return;
        double sum = 0;
        // the loads are independent; only the additions depend on each other
#if defined(__CUDACC__)
#pragma unroll 32
#endif
        for (int64_t i = 0; i < chunks; ++i) sum += workspace[b * chunks + i];
        finish.write(b, sum);
    }
};

template <class C, bool LONG, class Terms, class End>
int sum_with(int op, const fd_launch& l, const Terms& terms, const Tiling& t, const End& finish, void* workspace) {
    const int64_t chunks = grid(t).chunks;
    if (chunks > 1 && !workspace && l.batch > 0)
        return fail(FD_VALUE_ERROR, "expected a workspace for samples of %lld chunks, got none.", (long long)chunks);
    C* partial = chunks > 1 ? (C*)workspace : nullptr;
    if (int status = launch(op, l, grid(t), Sum<C, Terms, End, LONG>{terms, t, finish, partial})) return status;
    if (!partial) return FD_OK;
    const SumChunks<C, End> second = {partial, l.batch, chunks, finish};
    return launch(FD_SUM_CHUNKS, l, {(l.batch + second.THREADS - 1) / second.THREADS, 1, second.THREADS}, second);
}

// End<C>{end…} makes a result of the sum of Terms<C, PLAIN>{args, tiling} over each sample.
template <template <class, bool> class Terms, template <class> class End, class Args, class... Ends>
int sum_terms(int op, const fd_launch& l, int64_t type, const Tiling& t, bool plain, void* workspace, const Args& a, Ends... end) {
    if (type == FD_FLOAT64) {
        const End<double> finish = {end...};
        const Terms<double, false> terms = {a, t};
        return t.is_long() ? sum_with<double, true>(op, l, terms, t, finish, workspace)
                           : sum_with<double, false>(op, l, terms, t, finish, workspace);
    }
    const End<float> finish = {end...};
    const Terms<float, false> terms = {a, t};
    if (!t.is_long()) return sum_with<float, false>(op, l, terms, t, finish, workspace);
    if (plain) return sum_with<float, true>(op, l, Terms<float, true>{a, t}, t, finish, workspace);
    return sum_with<float, true>(op, l, terms, t, finish, workspace);
}

// out[b] = that sum, or for a mean weight * (sum / mean_of).
template <template <class, bool> class Terms, class Args>
int sum_elements(int op, const Args& a, int64_t type, const Tiling& t, bool plain, void* out, void* workspace,
                 const void* weight = nullptr, int64_t mean_of = 0) {
    return sum_terms<Terms, Finish>(op, a.launch, type, t, plain, workspace, a, out, weight, mean_of);
}

// A thread's terms, added in order.
template <class C>
FD_HD C added(const C (&terms)[4], int count) {
    C sum = 0;
    FD_UNROLL
    for (int i = 0; i < 4; ++i) sum = i < count ? sum + terms[i] : sum;
    return sum;
}

}  // namespace fastdiff::FD_LEVEL
