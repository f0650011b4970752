// The vectors of a CPU level: the number of lanes and the four operations that have no portable C++.
//
// Everything else uses the compiler's vector extensions, which act on each lane as on a scalar: the
// same roundings, hence the same bits, at every width. Included once per level. All names are local to
// that level's namespace, because the linker must never keep an inline function compiled for AVX-512
// for the baseline.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fastdiff::FD_LEVEL {

#if defined(__AVX512F__)
#define FD_WIDTH 64
#elif defined(__AVX2__)
#define FD_WIDTH 32
#else
#define FD_WIDTH 16
#endif

typedef float Floats __attribute__((vector_size(FD_WIDTH)));
typedef int32_t Ints __attribute__((vector_size(FD_WIDTH)));
typedef uint32_t Words __attribute__((vector_size(FD_WIDTH)));
typedef uint64_t Longs __attribute__((vector_size(FD_WIDTH)));

constexpr int FLOATS = FD_WIDTH / 4;
constexpr int LONGS = FD_WIDTH / 8;

// low words of a times the constant m: 64-bit products
static inline Longs multiply_low(Longs a, uint32_t m) {
#if defined(__AVX512F__)
    return (Longs)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
    return (Longs)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__SSE2__)
    return (Longs)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#elif defined(__ARM_NEON)
    return (Longs)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(m));
#else
    return (a & 0xFFFFFFFFu) * (uint64_t)m;
#endif
}

// correctly rounded
static inline Floats square_root(Floats a) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (Floats)_mm256_sqrt_ps((__m256)a);
#elif defined(__SSE2__)
    return (Floats)_mm_sqrt_ps((__m128)a);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (Floats)vsqrtq_f32((float32x4_t)a);
#else
    for (int i = 0; i < FLOATS; ++i) a[i] = sqrtf(a[i]);
    return a;
#endif
}

// a0 b0 a1 b1 of every 16-byte part, and a2 b2 a3 b3
static inline void interleave(Floats a, Floats b, Floats& low, Floats& high) {
#if defined(__AVX512F__)
    low = (Floats)_mm512_unpacklo_ps((__m512)a, (__m512)b);
    high = (Floats)_mm512_unpackhi_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    low = (Floats)_mm256_unpacklo_ps((__m256)a, (__m256)b);
    high = (Floats)_mm256_unpackhi_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    low = (Floats)_mm_unpacklo_ps((__m128)a, (__m128)b);
    high = (Floats)_mm_unpackhi_ps((__m128)a, (__m128)b);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    low = (Floats)vzip1q_f32((float32x4_t)a, (float32x4_t)b);
    high = (Floats)vzip2q_f32((float32x4_t)a, (float32x4_t)b);
#else
    low = Floats{a[0], b[0], a[1], b[1]};
    high = Floats{a[2], b[2], a[3], b[3]};
#endif
}

// The 64-bit lane of the i-th counter, such that interleave() gives the normals in order.
constexpr int lane_of(int i) { return i < LONGS / 2 ? 2 * i : 2 * (i - LONGS / 2) + 1; }

static inline void store(float* to, Floats a) { memcpy(to, &a, sizeof a); }

}  // namespace fastdiff::FD_LEVEL
