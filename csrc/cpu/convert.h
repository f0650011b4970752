// Conversion of operands to the compute type: converted when loaded, rounded once (to nearest even)
// when stored.
//
// A block that already has the compute type is used in place. Others pass through a scratch block that
// stays in the first-level cache. The integer formulas give the bits of the F16C instructions,
// including quieted NaN payloads, so levels with and without them agree.
#pragma once

#include "fastdiff/formulas.h"
#include "fastdiff/ops.h"
#include "lanes.h"

#define FD_SIMD _Pragma("omp simd")

namespace fastdiff::FD_LEVEL {

template <class C>
constexpr int64_t TYPE_OF = sizeof(C) == 8 ? FD_FLOAT64 : FD_FLOAT32;

static inline int64_t size_of(int64_t type) { return type == FD_FLOAT64 ? 8 : type == FD_FLOAT32 ? 4 : 2; }
static inline void* at(void* p, int64_t type, int64_t i) { return (char*)p + i * size_of(type); }
static inline const void* at(const void* p, int64_t type, int64_t i) { return (const char*)p + i * size_of(type); }

static inline float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7FFFu;
    uint32_t normal = (rest << 13) + (112u << 23), wide = (rest << 13) + (224u << 23);
    uint32_t tiny = bit_cast<uint32_t>((float)(int32_t)rest * 0x1p-24f);
    uint32_t bits = rest < 0x0400u ? tiny : rest < 0x7C00u ? normal : rest > 0x7C00u ? wide | 0x00400000u : wide;
    return bit_cast<float>(bits | sign);
}

static inline uint16_t to_half(float f) {
    uint32_t bits = bit_cast<uint32_t>(f), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7FFFFFFFu;
    // below 2^-14 the sum with 0.5 rounds at half's smallest step; above, rounding is an integer addition
    uint32_t tiny = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3F000000u;
    uint32_t normal = (rest + 0xC8000FFFu + ((rest >> 13) & 1u)) >> 13;
    uint32_t nan = 0x7E00u | ((rest >> 13) & 0x03FFu);
    uint32_t half = rest < 0x38800000u ? tiny : rest < 0x47800000u ? normal : rest > 0x7F800000u ? nan : 0x7C00u;
    return (uint16_t)(half | sign);
}

static inline float from_bfloat(uint16_t h) { return bit_cast<float>((uint32_t)h << 16); }

static inline uint16_t to_bfloat(float f) {
    uint32_t bits = bit_cast<uint32_t>(f), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x0040u : rounded);
}

// Rounds to odd: sets the last bit of the float if digits were lost, so a second rounding is exact.
static inline float to_odd(double d) {
    float f = (float)d;
    double back = f;
    uint32_t bits = bit_cast<uint32_t>(f), down = bits - (fabs(back) > fabs(d) ? 1u : 0u);
    return back == d || d != d ? f : bit_cast<float>(down | 1u);
}
static inline float to_odd(float f) { return f; }

template <class C>
static void halves_to(const uint16_t* from, C* to, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        float f[8];
        _mm256_storeu_ps(f, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
        for (int k = 0; k < 8; ++k) to[i + k] = f[k];
    }
#endif
    for (; i < n; ++i) to[i] = from_half(from[i]);
}

template <class C>
static void to_halves(const C* from, uint16_t* to, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        float f[8];
        for (int k = 0; k < 8; ++k) f[k] = to_odd(from[i + k]);
        _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(f), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    for (; i < n; ++i) to[i] = to_half(to_odd(from[i]));
}

// Returns n elements of `input` in the compute type: in place if they have it, else in scratch.
template <class C>
static const C* load(const fd_input& input, int64_t first, int64_t n, C* scratch) {
    const int64_t type = input.type;
    const void* from = at(input.data, type, first);
    if (type == TYPE_OF<C>) return (const C*)from;
    if (type == FD_FLOAT16) {
        halves_to((const uint16_t*)from, scratch, n);
    } else if (type == FD_BFLOAT16) {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) scratch[i] = from_bfloat(((const uint16_t*)from)[i]);
    } else if (type == FD_FLOAT64) {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) scratch[i] = (C)((const double*)from)[i];
    } else {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) scratch[i] = ((const float*)from)[i];
    }
    return scratch;
}

// Rounds n values into `output`; nothing is done where from == to.
template <class C>
static void save(const fd_output& output, int64_t first, int64_t n, const C* from) {
    const int64_t type = output.type;
    void* to = at(output.data, type, first);
    if (type == TYPE_OF<C>) {
        if (to != from) memcpy(to, from, n * sizeof(C));
    } else if (type == FD_FLOAT16) {
        to_halves(from, (uint16_t*)to, n);
    } else if (type == FD_BFLOAT16) {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) ((uint16_t*)to)[i] = to_bfloat(to_odd(from[i]));
    } else if (type == FD_FLOAT64) {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) ((double*)to)[i] = from[i];
    } else {
        FD_SIMD
        for (int64_t i = 0; i < n; ++i) ((float*)to)[i] = (float)from[i];
    }
}

// Returns where to compute n values of an output: in the output itself if it has the compute type.
template <class C>
static C* target(const fd_output& to, int64_t first, C* scratch) {
    return to.type == TYPE_OF<C> ? (C*)at(to.data, to.type, first) : scratch;
}

}  // namespace fastdiff::FD_LEVEL
