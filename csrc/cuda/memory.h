// Conversion of operands to the compute type C, four at a time: converted when loaded, rounded once (to
// nearest even) when stored. The dtype is the same for the whole grid, so a switch on it never diverges
// within a warp. With PLAIN (float32 arrays, aligned) only a 16-byte access is left.
#pragma once

#include "launch.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastdiff::FD_LEVEL {

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};

template <class T>
struct alignas(sizeof(T) == 2 ? 8 : 16) Four {
    T v[4];
};

// One access of 8 bytes, or one or two of 16. It is explicit because nvcc splits a plain assignment into
// its members.
#if defined(__CUDA_ARCH__)
FD_HD void put(void* to, const Four<float>& f) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(f.v[0]), "f"(f.v[1]),
                 "f"(f.v[2]), "f"(f.v[3]) : "memory");
}
FD_HD void put(void* to, const Four<double>& f) {
    FD_UNROLL
    for (int i = 0; i < 4; i += 2)
        asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global((double*)to + i)), "d"(f.v[i]),
                     "d"(f.v[i + 1]) : "memory");
}
template <class T>
FD_HD void put(void* to, const Four<T>& f) {
    asm volatile("st.global.v4.u16 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "h"(f.v[0].bits),
                 "h"(f.v[1].bits), "h"(f.v[2].bits), "h"(f.v[3].bits) : "memory");
}
#else
template <class T>
FD_HD void put(void* to, const Four<T>& from) {
    *(Four<T>*)to = from;
}
#endif

// Rounds to odd: sets the last bit of the float if digits were lost, so a second rounding is exact.
FD_HD float to_odd(double d) {
    const float f = (float)d;
    const double back = f;
    const uint32_t bits = bit_cast<uint32_t>(f), down = bits - (fabs(back) > fabs(d) ? 1u : 0u);
    return back == d || d != d ? f : bit_cast<float>(down | 1u);
}
FD_HD float to_odd(float f) { return f; }

#if defined(__CUDACC__)
FD_HD float wide(Half h) { return __half2float(__ushort_as_half(h.bits)); }
FD_HD float wide(Bfloat h) { return __bfloat162float(__ushort_as_bfloat16(h.bits)); }
FD_HD void narrow(float f, Half& to) { to.bits = __half_as_ushort(__float2half_rn(f)); }
FD_HD void narrow(float f, Bfloat& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(f)); }
#else
FD_HD float wide(Half h) {
    const uint32_t sign = (uint32_t)(h.bits & 0x8000u) << 16, rest = h.bits & 0x7FFFu;
    const uint32_t tiny = bit_cast<uint32_t>((float)(int32_t)rest * 0x1p-24f);
    const uint32_t normal = (rest << 13) + (112u << 23), special = (rest << 13) + (224u << 23);
    return bit_cast<float>((rest < 0x0400u ? tiny : rest < 0x7C00u ? normal : special) | sign);
}
FD_HD float wide(Bfloat h) { return bit_cast<float>((uint32_t)h.bits << 16); }
FD_HD void narrow(float f, Half& to) {
    const uint32_t bits = bit_cast<uint32_t>(f), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7FFFFFFFu;
    // below 2^-14 the sum with 0.5 rounds at half's smallest step; above, rounding is an integer addition
    const uint32_t tiny = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3F000000u;
    const uint32_t normal = (rest + 0xC8000FFFu + ((rest >> 13) & 1u)) >> 13;
    const uint32_t infinite = rest > 0x7F800000u ? 0x7FFFu : 0x7C00u;
    to.bits = (uint16_t)((rest < 0x38800000u ? tiny : rest < 0x47800000u ? normal : infinite) | sign);
}
FD_HD void narrow(float f, Bfloat& to) {
    const uint32_t bits = bit_cast<uint32_t>(f), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    to.bits = (uint16_t)(f != f ? 0x7FFFu : rounded);
}
#endif

template <class C, class T>
FD_HD C value_of(T t) {
    if constexpr (sizeof(T) == 2)
        return wide(t);
    else
        return (C)t;
}

template <class T, class C>
FD_HD T rounded(C value) {
    if constexpr (sizeof(T) == 2) {
        T to;
        narrow(to_odd(value), to);
        return to;
    } else {
        return (T)value;
    }
}

// Elements at … at + count - 1 of an array; vector: four, aligned.
struct Span {
    int64_t at;
    int count;
    bool vector;
};

template <class T, class C>
FD_HD void load_as(const void* from, const Span& s, C (&to)[4]) {
    const T* p = (const T*)from + s.at;
    if (s.vector) {
        const Four<T> four = *(const Four<T>*)p;
        FD_UNROLL
        for (int i = 0; i < 4; ++i) to[i] = value_of<C>(four.v[i]);
    } else {
        FD_UNROLL
        for (int i = 0; i < 4; ++i) to[i] = i < s.count ? value_of<C>(p[i]) : (C)0;
    }
}

template <class T, class C>
FD_HD void store_as(void* to, const Span& s, const C (&from)[4]) {
    T* p = (T*)to + s.at;
    if (s.vector) {
        Four<T> four;
        FD_UNROLL
        for (int i = 0; i < 4; ++i) four.v[i] = rounded<T>(from[i]);
        put(p, four);
    } else {
        FD_UNROLL
        for (int i = 0; i < 4; ++i)
            if (i < s.count) p[i] = rounded<T>(from[i]);
    }
}

template <bool PLAIN, class C>
FD_HD void load(const void* from, int64_t type, const Span& s, C (&to)[4]) {
    if (PLAIN) return load_as<C>(from, {s.at, 4, true}, to);
    switch (type) {
        case FD_FLOAT32: return load_as<float>(from, s, to);
        case FD_FLOAT64: return load_as<double>(from, s, to);
        case FD_FLOAT16: return load_as<Half>(from, s, to);
        default: return load_as<Bfloat>(from, s, to);
    }
}

template <bool PLAIN, class C>
FD_HD void store(const fd_output& to, const Span& s, const C (&from)[4]) {
    if (PLAIN) return store_as<C>(to.data, {s.at, 4, true}, from);
    switch (to.type) {
        case FD_FLOAT32: return store_as<float>(to.data, s, from);
        case FD_FLOAT64: return store_as<double>(to.data, s, from);
        case FD_FLOAT16: return store_as<Half>(to.data, s, from);
        default: return store_as<Bfloat>(to.data, s, from);
    }
}

// The values as an array of this type holds them.
template <bool PLAIN, class C>
FD_HD void round_to(int64_t type, C (&v)[4]) {
    if constexpr (!PLAIN) {
        if (type == FD_FLOAT64) return;
        FD_UNROLL
        for (int i = 0; i < 4; ++i)
            v[i] = type == FD_FLOAT32   ? (C)(float)v[i]
                   : type == FD_FLOAT16 ? value_of<C>(rounded<Half>(v[i]))
                                        : value_of<C>(rounded<Bfloat>(v[i]));
    }
}

template <bool PLAIN, class C>
FD_HD void load(const fd_input& from, const Span& s, C (&to)[4]) {
    load<PLAIN>(from.data, from.type, s, to);
}

// A view's element_stride 0 is one value for the whole sample.
template <bool PLAIN, class C>
FD_HD void load(const fd_view& from, const Spot& p, bool vector, C (&to)[4]) {
    const int64_t start = p.b * from.sample_stride;
    if (PLAIN || from.element_stride) return load<PLAIN>(from.data, from.type, {start + p.e, p.count, vector}, to);
    C one[4];
    load<false>(from.data, from.type, {start, 1, false}, one);
    FD_UNROLL
    for (int i = 0; i < 4; ++i) to[i] = one[0];
}

// The normals of a thread's four elements.
template <class C>
FD_HD void draw(const fd_noise& d, uint64_t step, const Spot& p, C (&z)[4]) {
    const uint64_t seed = d.seeds ? (uint64_t)d.seeds[p.b] : d.seed;
    const uint64_t id = (uint64_t)(d.sample_ids ? d.sample_ids[p.b] : p.b);
    float normal[4];
    normals4(seed, id, d.stream, step, (uint64_t)p.e / 4, normal);
    FD_UNROLL
    for (int i = 0; i < 4; ++i) z[i] = id < FD_IDS ? normal[i] : (float)NAN;
}

// The layout of an op's arrays, as the host finds it array by array; missing ones are ignored.
struct Arrays {
    bool vector, plain;  // all move four elements at once; all are also float32

    explicit Arrays(const fd_launch& l) : vector(l.elements % 4 == 0), plain(vector) {}

    Arrays& add(const void* data, int64_t type) {
        if (!data) return *this;
        vector = vector && (uintptr_t)data % (type == FD_FLOAT16 || type == FD_BFLOAT16 ? 8 : 16) == 0;
        plain = plain && vector && type == FD_FLOAT32;
        return *this;
    }
    Arrays& add(const fd_input& a) { return add(a.data, a.type); }
    Arrays& add(const fd_output& a) { return add(a.data, a.type); }
    Arrays& add(const fd_view& a) {
        if (!a.data) return *this;
        // a single value for a sample is loaded alone
        if (a.element_stride == 0) return plain = false, *this;
        vector = vector && a.sample_stride % 4 == 0;
        return add(a.data, a.type);
    }
};

}  // namespace fastdiff::FD_LEVEL
