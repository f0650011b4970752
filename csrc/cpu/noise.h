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

template <int N>
static inline Floats horner(const float (&c)[N], Floats x) {
    Floats p = x * c[N - 1] + c[N - 2];
    for (int i = N - 3; i >= 0; --i) p = p * x + c[i];
    return p;
}

static inline void box_muller(Words a, Words b, Floats& cos_element, Floats& sin_element) {
    static constexpr float LOG[] = {0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a008p-3f, -0x1.547244p-3f,
                                    0x1.22da1cp-3f, -0x1.0d8542p-3f, 0x1.055b72p-3f, -0x1.38b58ap-4f};
    static constexpr float SIN[] = {0x1.921fb6p+1f, -0x1.4abbbap+2f, 0x1.465ec6p+1f, -0x1.2d9bb6p-1f};
    static constexpr float COS[] = {-0x1.3bd3ccp+2f, 0x1.03c1dep+2f, -0x1.55c664p+0f, 0x1.d9f7bcp-3f};
    Words k = (a >> 8) | 1u, j = (b >> 8) | 1u;

    Words h = (Words)to_floats(k) + 0x004AFB0Du;
    Floats n = to_floats((h >> 23) - 151u);
    Floats d = (Floats)((h & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    Floats dd = d * d;
    Floats y = (dd * d) * horner(LOG, d);
    y = y + n * 0x1.7f7d1cp-20f;
    y = y - 0.5f * dd;
    Floats r = square_root(-2.0f * ((d + y) + n * 0x1.62e4p-1f));

    Floats v = to_floats((j & 0x007FFFFFu) - 0x00400000u) * 0x1p-24f;
    Floats z = v * v;
    Floats s = v * horner(SIN, z);
    Floats c = horner(COS, z) * z + 1.0f;
    Floats t = s + s;
    // the top bit of j is that of b; it flips the radius
    Words sign = b & 0x80000000u;
    cos_element = (Floats)((Words)r ^ sign ^ 0x80000000u) * (t * c);
    sin_element = (Floats)((Words)r ^ sign) * (1.0f - t * s);
}

// GROUP normals for each of two vectors of counters; two, because a round's chain of latencies is long
static inline __attribute__((always_inline)) void draw(Counters (&s)[2], float* out) {
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
    for (int i = 0; i < 2; ++i) {
        const uint64_t low = 0xFFFFFFFFu;
        Words a = (Words)((s[i].c0 & low) | (s[i].c2 << 32)), b = (Words)((s[i].c1 & low) | (s[i].c3 << 32));
        Floats cosine, sine, first, second;
        box_muller(a, b, cosine, sine);
        interleave(cosine, sine, first, second);
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
    for (int64_t at = 0; at < count; at += 2 * GROUP) {
        Counters s[2] = {{c0, c1, c2, c3, k0, k1}, {c0 + LONGS, c1, c2, c3, k0, k1}};
        c0 += 2 * LONGS;
        if (count - at >= 2 * GROUP) {
            draw(s, out + at);
        } else {
            float tail[2 * GROUP];
            draw(s, tail);
            memcpy(out + at, tail, (count - at) * sizeof(float));
        }
    }
}

// Normals of all n elements of samples [b0, b1): every lane has its own sample, so short samples fill the vectors.
static void draw_short(const fd_noise& d, uint64_t step, int64_t b0, int64_t b1, int64_t n, float* out) {
    constexpr int LANES = 2 * LONGS;
    const int64_t groups = (n + 3) / 4;
    Counters s[2] = {};
    float normals[4 * LANES];
    float* to[LANES];
    int size[LANES], filled = 0;
    for (int64_t b = b0; b < b1; ++b, out += n) {
        const uint64_t seed = seed_of(d, b), id = id_of(d, b);
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
