// Noise contract version 1 (kernels/README.md section 1): Philox4x32-10 and the exact Box-Muller transform on lanes.
//
// A counter sits in the low half of a 64-bit lane. The widening multiply reads low halves only, and its product is the
// next low word in place and the next high word after one shift: eight instructions a round for LONGS counters. High
// halves carry rubbish until the words are taken out.
#pragma once

#include "fastdiff/cpu.h"
#include "lanes.h"

namespace fastdiff::FD_LEVEL {

struct Counters {
    Longs c0, c1, c2, c3, k0, k1;
};

constexpr int GROUP = 4 * LONGS;  // normals in a vector of counters
constexpr int CHUNK = 2 * GROUP;  // normals drawn at once, see Pack

// V vectors in lockstep. The transform is one long chain of dependent operations, and a processor's window hardly reaches
// beyond it; two chains side by side keep more units busy, and their registers still suffice.
template <int V>
struct Pack {
    Floats v[V];
};

#define FD_PACK(op)                                            \
    template <int V>                                           \
    static inline Pack<V> operator op(Pack<V> a, Pack<V> b) {  \
        for (int i = 0; i < V; ++i) a.v[i] = a.v[i] op b.v[i]; \
        return a;                                              \
    }                                                          \
    template <int V>                                           \
    static inline Pack<V> operator op(Pack<V> a, float b) {    \
        for (int i = 0; i < V; ++i) a.v[i] = a.v[i] op b;      \
        return a;                                              \
    }
FD_PACK(+)
FD_PACK(-)
FD_PACK(*)
#undef FD_PACK

template <int V, class F>
static inline Pack<V> pack(F f) {
    Pack<V> a;
    for (int i = 0; i < V; ++i) a.v[i] = f(i);
    return a;
}

template <int V, int N>
static inline Pack<V> horner(const float (&c)[N], Pack<V> x) {
    Pack<V> p = x * c[N - 1] + c[N - 2];
#pragma GCC unroll 8
    for (int i = N - 3; i >= 0; --i) p = p * x + c[i];
    return p;
}

template <int V>
static inline __attribute__((always_inline)) Pack<V> radius(const Words (&a)[V]) {
    static constexpr float LOG[] = {0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a008p-3f, -0x1.547244p-3f,
                                    0x1.22da1cp-3f, -0x1.0d8542p-3f, 0x1.055b72p-3f, -0x1.38b58ap-4f};
    auto h = [&](int i) { return (Words)to_floats((a[i] >> 8) | 1u) + 0x004AFB0Du; };
    Pack<V> n = pack<V>([&](int i) { return to_floats((h(i) >> 23) - 151u); });
    Pack<V> d = pack<V>([&](int i) { return (Floats)((h(i) & 0x007FFFFFu) + 0x3F3504F3u); }) - 1.0f;
    Pack<V> dd = d * d;
    Pack<V> y = (dd * d) * horner(LOG, d);
    y = y + n * 0x1.7f7d1cp-20f;
    y = y - dd * 0.5f;
    Pack<V> g = ((d + y) + n * 0x1.62e4p-1f) * -2.0f;
    return pack<V>([&](int i) { return square_root(g.v[i]); });
}

// The two normals of every pair of words (a, b).
template <int V>
static inline __attribute__((always_inline)) void box_muller(const Words (&a)[V], const Words (&b)[V], Pack<V>& cos_element,
                                                             Pack<V>& sin_element) {
    static constexpr float SIN[] = {0x1.921fb6p+1f, -0x1.4abbbap+2f, 0x1.465ec6p+1f, -0x1.2d9bb6p-1f};
    static constexpr float COS[] = {-0x1.3bd3ccp+2f, 0x1.03c1dep+2f, -0x1.55c664p+0f, 0x1.d9f7bcp-3f};
    Pack<V> r = radius(a);
    Pack<V> v = pack<V>([&](int i) { return to_floats((((b[i] >> 8) | 1u) & 0x007FFFFFu) - 0x00400000u); }) * 0x1p-24f;
    Pack<V> z = v * v;
    Pack<V> s = v * horner(SIN, z);
    Pack<V> c = horner(COS, z) * z + 1.0f;
    Pack<V> t = s + s;
    // the top bit of b is that of j; it flips the radius
    Pack<V> flipped = pack<V>([&](int i) { return (Floats)((Words)r.v[i] ^ (b[i] & 0x80000000u)); });
    Pack<V> negated = pack<V>([&](int i) { return (Floats)((Words)flipped.v[i] ^ 0x80000000u); });
    cos_element = negated * (t * c);
    sin_element = flipped * (pack<V>([](int) { return Floats{} + 1.0f; }) - t * s);
}

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
    Words a[V], b[V];
    philox(s);
    for (int i = 0; i < V; ++i) {
        const uint64_t low = 0xFFFFFFFFu;
        a[i] = (Words)((s[i].c0 & low) | (s[i].c2 << 32));
        b[i] = (Words)((s[i].c1 & low) | (s[i].c3 << 32));
    }
    Pack<V> cosine, sine;
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
    for (int i = 0; i < LONGS; ++i) c0[lane_of(i)] = (uint64_t)(first / 4) + i;
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

// Normals of all n elements of samples [b0, b1) at step_of(b): every lane has its own sample, so short samples fill the
// vectors.
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
            v.c0[lane] = (uint64_t)g, v.c1[lane] = step;
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
