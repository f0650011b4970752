// Noise contract version 1 (kernels/README.md section 1): Philox4x32-10 and the exact Box-Muller transform on lanes.
//
// A counter is in the low half of a 64-bit lane. The widening multiply reads only low halves. Its
// product contains the next low word in place and the next high word after one shift: eight
// instructions per round for LONGS counters. High halves have arbitrary bits until the words are
// extracted.
#pragma once

#include <type_traits>
#include <utility>

#include "fastdiff/arithmetic.h"
#include "fastdiff/ops.h"
#include "lanes.h"

namespace fastdiff::FD_LEVEL {

struct Counters {
    Longs c0, c1, c2, c3, k0, k1;
};

constexpr int GROUP = 4 * LONGS;  // normals in a vector of counters
constexpr int CHUNK = 2 * GROUP;  // normals drawn at once, see Pack

// V vectors that are computed in lockstep. The transform is one long chain of dependent operations,
// about as long as the processor's reorder window. Two interleaved chains use more execution units and
// still fit the registers. A pack has the operators of a scalar, so arithmetic.h works for both.
template <class T, int V>
struct Pack {
    T v[V];
};

template <class T>
using Lane = std::remove_reference_t<decltype(std::declval<T&>()[0])>;

#define FD_PACK(op, Other)                                                   \
    template <class T, int V>                                                \
    FD_HD Pack<T, V> operator op(const Pack<T, V>& a, const Pack<T, V>& b) { \
        Pack<T, V> r;                                                        \
        for (int i = 0; i < V; ++i) r.v[i] = a.v[i] op b.v[i];               \
        return r;                                                            \
    }                                                                        \
    template <class T, int V>                                                \
    FD_HD Pack<T, V> operator op(const Pack<T, V>& a, Other b) {             \
        Pack<T, V> r;                                                        \
        for (int i = 0; i < V; ++i) r.v[i] = a.v[i] op b;                    \
        return r;                                                            \
    }
FD_PACK(+, Lane<T>)
FD_PACK(-, Lane<T>)
FD_PACK(*, Lane<T>)
FD_PACK(>>, int)
FD_PACK(|, uint32_t)
FD_PACK(&, uint32_t)
FD_PACK(^, uint32_t)
#undef FD_PACK

#define FD_EACH(name, From, To, expression)                   \
    template <int V>                                          \
    FD_HD Pack<To, V> name(const Pack<From, V>& a) {          \
        Pack<To, V> r;                                        \
        for (int i = 0; i < V; ++i) r.v[i] = expression;      \
        return r;                                             \
    }
FD_EACH(float_of, Words, Floats, __builtin_convertvector((Ints)a.v[i], Floats))
FD_EACH(float_bits, Words, Floats, (Floats)a.v[i])
FD_EACH(bits_of, Floats, Words, (Words)a.v[i])
FD_EACH(root, Floats, Floats, square_root(a.v[i]))
#undef FD_EACH

template <int V>
static inline __attribute__((always_inline)) void philox(Counters (&s)[V]) {
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        for (Counters& v : s) {
            Longs p0 = multiply_low(v.c0, 0xD2511F53u), p1 = multiply_low(v.c2, 0xCD9E8D57u);
            v.c0 = (p1 >> 32) ^ v.c1 ^ v.k0;
            v.c1 = p1;
            v.c2 = (p0 >> 32) ^ v.c3 ^ v.k1;
            v.c3 = p0;
            v.k0 += 0x9E3779B9u;
            v.k1 += 0xBB67AE85u;
        }
    }
}

// The V * GROUP normals of V vectors of counters.
template <int V>
static inline __attribute__((always_inline)) void draw(Counters (&s)[V], float* out) {
    Pack<Words, V> a, b;
    philox(s);
    for (int i = 0; i < V; ++i) {
        const uint64_t low = 0xFFFFFFFFu;
        a.v[i] = (Words)((s[i].c0 & low) | (s[i].c2 << 32));
        b.v[i] = (Words)((s[i].c1 & low) | (s[i].c3 << 32));
    }
    Pack<Floats, V> cosine, sine;
    box_muller(a, b, cosine, sine);
    for (int i = 0; i < V; ++i) {
        Floats first, second;
        interleave(cosine.v[i], sine.v[i], first, second);
        store(out + i * GROUP, first);
        store(out + i * GROUP + FLOATS, second);
    }
}

static inline uint64_t seed_of(const fd_noise& d, int64_t b) { return d.seeds ? (uint64_t)d.seeds[b] : d.seed; }
static inline uint64_t id_of(const fd_noise& d, int64_t b) { return (uint64_t)(d.sample_ids ? d.sample_ids[b] : b); }

// Normals of elements [first, first + count) of sample b, first a multiple of 4.
static void draw_run(const fd_noise& d, uint64_t step, int64_t b, int64_t first, int64_t count, float* out) {
    const uint64_t seed = seed_of(d, b), id = id_of(d, b);
    const Longs zero = {};
    const Longs c1 = zero + step, c2 = zero + id, c3 = zero + (d.stream << 24 | id >> 32);
    const Longs k0 = zero + seed, k1 = zero + (seed >> 32);
    Longs c0 = zero;
    for (int i = 0; i < LONGS; ++i) c0[lane_of(i)] = (d.stream >> 8) + (uint64_t)(first / 4) + i;
    auto counters = [&](int vector) { return Counters{c0 + (uint64_t)(vector * LONGS), c1, c2, c3, k0, k1}; };
    int64_t at = 0;
    for (; count - at >= CHUNK; at += CHUNK, c0 += 2 * LONGS) {
        Counters s[2] = {counters(0), counters(1)};
        draw(s, out + at);
    }
    for (; at < count; at += GROUP, c0 += LONGS) {
        Counters s[1] = {counters(0)};
        if (count - at >= GROUP) {
            draw(s, out + at);
        } else {
            float tail[GROUP];
            draw(s, tail);
            memcpy(out + at, tail, (count - at) * sizeof(float));
        }
    }
}

// Normals of all n elements of samples [b0, b1) at step_of(b). Every lane has a different sample, so
// short samples fill the vectors.
template <class StepOf>
static void draw_short(const fd_noise& d, StepOf step_of, int64_t b0, int64_t b1, int64_t n, float* out) {
    constexpr int LANES = 2 * LONGS;
    const int64_t groups = (n + 3) / 4;
    Counters s[2] = {};
    float normals[4 * LANES];
    float* to[LANES];
    int size[LANES], filled = 0;
    for (int64_t b = b0; b < b1; ++b, out += n) {
        const uint64_t seed = seed_of(d, b), id = id_of(d, b), step = step_of(b);
        for (int64_t g = 0; g < groups; ++g) {
            Counters& v = s[filled / LONGS];
            const int lane = lane_of(filled % LONGS);
            v.c0[lane] = (d.stream >> 8) + (uint64_t)g, v.c1[lane] = step;
            v.c2[lane] = id, v.c3[lane] = d.stream << 24 | id >> 32;
            v.k0[lane] = seed, v.k1[lane] = seed >> 32;
            to[filled] = out + 4 * g;
            size[filled] = (int)(n - 4 * g < 4 ? n - 4 * g : 4);
            if (++filled == LANES || (b == b1 - 1 && g == groups - 1)) {
                draw(s, normals);
                for (int i = 0; i < filled; ++i)
                    for (int k = 0; k < size[i]; ++k) to[i][k] = normals[4 * i + k];
                filled = 0;
            }
        }
    }
}

}  // namespace fastdiff::FD_LEVEL
