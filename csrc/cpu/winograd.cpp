// Winograd's F(4x4, 3x3), vectorised over channels: 6x6 input tiles are transformed, then 36 matrix
// products, then 4x4 outputs.
//
// The interpolation points are 0, ±a, ±b and infinity with a = 1/sqrt 2, b = sqrt 2. Their products
// stay near 1, which gives less rounding error than the usual ±1, ±2.
// fastdiff/acceleration/winograd.py transforms the weights by them.
//
// An element of the product is one chain of multiply-adds over the channels, first to last, in every
// batch: a sample's bits do not depend on its batch or on the threads. They depend on the level,
// because only some levels have fused multiply-adds.
#include "winograd.h"

#include "lanes.h"

namespace fastdiff::FD_LEVEL {

namespace {

constexpr float A = 0.70710678118654752f, A3 = 0.35355339059327376f;  // a, a^3; a^2 = 1/2
constexpr float B = 1.41421356237309505f, B3 = 2.82842712474619010f;  // b, b^3; b^2 = 2
constexpr float ZERO[FLOATS] = {};

template <class V>
static inline V load(const float* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
static inline void put(float* to, V v) {
    memcpy(to, &v, sizeof v);
}

static inline Floats broadcast(const float* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_set1_ps(*from);
#elif defined(__AVX2__)
    return (Floats)_mm256_broadcast_ss(from);
#elif defined(__SSE2__)
    return (Floats)_mm_set1_ps(*from);
#elif defined(__ARM_NEON)
    return (Floats)vld1q_dup_f32(from);
#else
    return Floats{*from, *from, *from, *from};
#endif
}

static inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// B' d: d is a column of the tile, or a row of the result
template <class V>
static inline void input_1d(V d0, V d1, V d2, V d3, V d4, V d5, V (&v)[6]) {
    const V even_a = d4 - 2.0f * d2, odd_a = A * (d3 - 2.0f * d1);
    const V even_b = d4 - 0.5f * d2, odd_b = B * (d3 - 0.5f * d1);
    v[0] = d0 - 2.5f * d2 + d4;
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = d1 - 2.5f * d3 + d5;
}

// A' m
template <class V>
static inline void output_1d(V m0, V m1, V m2, V m3, V m4, V m5, V (&y)[4]) {
    const V sum_a = m1 + m2, sum_b = m3 + m4, odd_a = m1 - m2, odd_b = m3 - m4;
    y[0] = m0 + (sum_a + sum_b);
    y[1] = A * odd_a + B * odd_b;
    y[2] = 0.5f * sum_a + 2.0f * sum_b;
    y[3] = (A3 * odd_a + B3 * odd_b) + m5;
}

// A g: the transpose of output_1d, for the gradient by the weight
template <class V>
static inline void gradient_1d(V g0, V g1, V g2, V g3, V (&v)[6]) {
    const V even_a = g0 + 0.5f * g2, odd_a = A * g1 + A3 * g3;
    const V even_b = g0 + 2.0f * g2, odd_b = B * g1 + B3 * g3;
    v[0] = g0;
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = g3;
}

struct Place {
    int64_t b, row, column;  // of the square's first pixel
};

static Place place(const Winograd& w, int64_t tile) {
    const int64_t n = w.first + tile, a = w.across(), d = w.down();
    return {n / (a * d), n / a % d * 4, n % a * 4};
}

struct Square {  // 6x6 pixels; those outside of the image are zero
    const float* pixel[6][6];
    int64_t advance[6][6];  // 1, or 0 outside
};

template <class V>
static inline void transform_in(const Square& s, int64_t c, float* out, int64_t stride) {
    V half[6][6], v[6];
    for (int j = 0; j < 6; ++j) {
        auto d = [&](int i) { return load<V>(s.pixel[i][j] + c * s.advance[i][j]); };
        input_1d<V>(d(0), d(1), d(2), d(3), d(4), d(5), v);
        for (int i = 0; i < 6; ++i) half[i][j] = v[i];
    }
    for (int i = 0; i < 6; ++i) {
        const V(&h)[6] = half[i];
        input_1d<V>(h[0], h[1], h[2], h[3], h[4], h[5], v);
        for (int j = 0; j < 6; ++j) put(out + (i * 6 + j) * stride + c, v[j]);
    }
}

template <class V>
static inline void transform_gradient(const Square& s, int64_t c, float* out, int64_t stride) {
    V half[6][4], v[6];
    for (int j = 0; j < 4; ++j) {
        auto g = [&](int i) { return load<V>(s.pixel[i][j] + c * s.advance[i][j]); };
        gradient_1d<V>(g(0), g(1), g(2), g(3), v);
        for (int i = 0; i < 6; ++i) half[i][j] = v[i];
    }
    for (int i = 0; i < 6; ++i) {
        gradient_1d<V>(half[i][0], half[i][1], half[i][2], half[i][3], v);
        for (int j = 0; j < 6; ++j) put(out + (i * 6 + j) * stride + c, v[j]);
    }
}

struct Target {  // a square of at most 4x4 outputs: its destination and what is added to it
    const fd_winograd_args& a;
    const float *add, *residual;
    float* out;
    int64_t down, across;
};

template <class V>
static inline void transform_out(const Target& t, int64_t c, const float* in, int64_t stride) {
    const fd_winograd_args& a = t.a;
    V half[4][6], y[4];
    for (int j = 0; j < 6; ++j) {
        auto m = [&](int i) { return load<V>(in + (i * 6 + j) * stride + c); };
        output_1d<V>(m(0), m(1), m(2), m(3), m(4), m(5), y);
        for (int i = 0; i < 4; ++i) half[i][j] = y[i];
    }
    V constant = V{};
    if (a.bias) constant += load<V>(a.bias + c);
    if (t.add) constant += load<V>(t.add + c);
    const float scale = (float)a.scale;
    for (int i = 0; i < 4 && i < t.down; ++i) {
        const V(&h)[6] = half[i];
        output_1d<V>(h[0], h[1], h[2], h[3], h[4], h[5], y);
        for (int j = 0; j < 4 && j < t.across; ++j) {
            V value = y[j] + constant;
            if (t.residual) value += load<V>(t.residual + i * a.residual_row_stride + j * a.residual_pixel_stride + c);
            put(t.out + i * a.out_row_stride + j * a.out_pixel_stride + c, value * scale);
        }
    }
}

#define FD_INLINE inline __attribute__((always_inline))

// Rows of vectors by recursion: as members they stay in registers, while arrays in loops are stored to
// memory in every iteration.
template <int N>
struct Panel {
    Panel<N - 1> before;
    Floats last;

    FD_INLINE void read(const float* from) { before.read(from), last = load<Floats>(from + (N - 1) * FLOATS); }
    FD_INLINE void save(float* to) const { before.save(to), store(to + (N - 1) * FLOATS, last); }
    FD_INLINE void increase(float* to) const {
        float* at = to + (N - 1) * FLOATS;
        before.increase(to), store(at, load<Floats>(at) + last);
    }
    FD_INLINE void clear() { before.clear(), last = Floats{}; }
    FD_INLINE void add(Floats d, const Panel& w) { before.add(d, w.before), last = multiply_add(d, w.last, last); }
};

template <>
struct Panel<0> {
    FD_INLINE void read(const float*) {}
    FD_INLINE void save(float*) const {}
    FD_INLINE void increase(float*) const {}
    FD_INLINE void clear() {}
    FD_INLINE void add(Floats, const Panel&) {}
};

constexpr int VECTORS = FD_WINOGRAD_PANEL / FLOATS;
constexpr int ROWS = FD_WIDTH == 64 ? 12 : FD_WIDTH == 32 ? 6 : 3;  // ROWS * VECTORS sums stay in registers

template <int N>
struct Sums {
    Sums<N - 1> before;
    Panel<VECTORS> last;

    FD_INLINE void save(float* to, int64_t width) const { before.save(to, width), last.save(to + (N - 1) * width); }
    FD_INLINE void increase(float* to, int64_t width) const { before.increase(to, width), last.increase(to + (N - 1) * width); }
    FD_INLINE void clear() { before.clear(), last.clear(); }
    FD_INLINE void add(const float* in, int64_t channels, const Panel<VECTORS>& w) {
        before.add(in, channels, w);
        last.add(broadcast(in + (N - 1) * channels), w);
    }
};

template <>
struct Sums<0> {
    FD_INLINE void save(float*, int64_t) const {}
    FD_INLINE void increase(float*, int64_t) const {}
    FD_INLINE void clear() {}
    FD_INLINE void add(const float*, int64_t, const Panel<VECTORS>&) {}
};

// rows of the product of one panel: out [n, width] = in [n, channels] weight [channels, 16]
template <int N>
static void rows(const float* in, int64_t channels, const float* weight, float* out, int64_t width) {
    Sums<N> sums;
    sums.clear();
    for (int64_t c = 0; c < channels; ++c) {
        Panel<VECTORS> w;
        w.read(weight + c * FD_WINOGRAD_PANEL);
        sums.add(in + c, channels, w);
    }
    sums.save(out, width);
}

template <int N>
static void some_rows(int64_t n, const float* in, int64_t channels, const float* weight, float* out, int64_t width) {
    if constexpr (N > 0) {
        if (n == N) rows<N>(in, channels, weight, out, width);
        else some_rows<N - 1>(n, in, channels, weight, out, width);
    }
}

// N channels of one panel of the weight's gradient: out [N, 16] += in' grad, over tiles
template <int N>
static void outer(const float* in, int64_t channels, const float* grad, int64_t width, int64_t tiles, float* out) {
    Sums<N> sums;
    sums.clear();
    for (int64_t n = 0; n < tiles; ++n) {
        Panel<VECTORS> g;
        g.read(grad + n * width);
        sums.add(in + n * channels, 1, g);
    }
    // a block is summed by itself: one chain over all tiles would round several times as much
    sums.increase(out, FD_WINOGRAD_PANEL);
}

template <int N>
static void some_outer(int64_t n, const float* in, int64_t channels, const float* grad, int64_t width, int64_t tiles, float* out) {
    if constexpr (N > 0) {
        if (n == N) outer<N>(in, channels, grad, width, tiles, out);
        else some_outer<N - 1>(n, in, channels, grad, width, tiles, out);
    }
}

}  // namespace

void winograd_input(const Winograd& w, int64_t begin, int64_t end) {
    const fd_winograd_args& a = w.args;
    for (int64_t tile = begin; tile < end; ++tile) {
        const Place at = place(w, tile);
        const float* image = a.image + at.b * a.sample_stride;
        Square s;
        for (int i = 0; i < 6; ++i)
            for (int j = 0; j < 6; ++j) {
                const int64_t y = at.row + i - 1, x = at.column + j - 1;
                const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
                s.pixel[i][j] = inside ? image + y * a.row_stride + x * a.pixel_stride : ZERO;
                s.advance[i][j] = inside;
            }
        float* out = w.spectrum() + tile * a.channels;
        int64_t c = 0;
        for (; c + FLOATS <= a.channels; c += FLOATS) transform_in<Floats>(s, c, out, w.in_stride());
        for (; c < a.channels; ++c) transform_in<float>(s, c, out, w.in_stride());
    }
}

// unit = position * panels + panel: a panel of weights stays in the first-level cache, a position's tiles in the second
void winograd_product(const Winograd& w, int64_t begin, int64_t end) {
    const int64_t panels = Winograd::panels(w.args.out_channels), channels = w.args.channels;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t position = unit / panels, panel = unit % panels;
        const float* in = w.spectrum() + position * w.in_stride();
        const float* weight = w.args.weight + unit * channels * FD_WINOGRAD_PANEL;
        float* out = w.product() + position * w.out_stride() + panel * FD_WINOGRAD_PANEL;
        for (int64_t n = 0, many; n < w.tiles; n += many) {
            const int64_t left = w.tiles - n;  // the last two blocks are equal: few rows would leave the multipliers idle
            many = left >= 2 * ROWS || left == ROWS ? ROWS : left > ROWS ? (left + 1) / 2 : left;
            some_rows<ROWS>(many, in + n * channels, channels, weight, out + n * w.width(), w.width());
        }
    }
}

// The gradient by the result, in the place of the residual, goes where the products of a convolution are.
void winograd_gradient(const Winograd& w, int64_t begin, int64_t end) {
    const fd_winograd_args& a = w.args;
    for (int64_t tile = begin; tile < end; ++tile) {
        const Place at = place(w, tile);
        const float* image = a.residual + at.b * a.residual_sample_stride;
        Square s;
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) {
                const int64_t y = at.row + i, x = at.column + j;
                const bool inside = y < a.height && x < a.width;
                s.pixel[i][j] = inside ? image + y * a.residual_row_stride + x * a.residual_pixel_stride : ZERO;
                s.advance[i][j] = inside;
            }
        float* out = w.product() + tile * w.width();
        int64_t c = 0;
        for (; c + FLOATS <= a.out_channels; c += FLOATS) transform_gradient<Floats>(s, c, out, w.out_stride());
        for (; c < a.out_channels; ++c) transform_gradient<float>(s, c, out, w.out_stride());
        for (; c < w.width(); ++c)  // the rest of the last panel
            for (int p = 0; p < FD_WINOGRAD_POSITIONS; ++p) out[p * w.out_stride() + c] = 0.0f;
    }
}

// unit = position * panels + panel; an element sums the tiles of a block, and the blocks, in their order
void winograd_weight(const Winograd& w, int64_t begin, int64_t end) {
    const int64_t panels = Winograd::panels(w.args.out_channels), channels = w.args.channels;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t position = unit / panels, panel = unit % panels;
        const float* in = w.spectrum() + position * w.in_stride();
        const float* grad = w.product() + position * w.out_stride() + panel * FD_WINOGRAD_PANEL;
        float* out = w.args.out + unit * channels * FD_WINOGRAD_PANEL;
        for (int64_t c = 0, many; c < channels; c += many) {
            const int64_t left = channels - c;
            many = left >= 2 * ROWS || left == ROWS ? ROWS : left > ROWS ? (left + 1) / 2 : left;
            some_outer<ROWS>(many, in + c, channels, grad, w.width(), w.tiles, out + c * FD_WINOGRAD_PANEL);
        }
    }
}

void winograd_output(const Winograd& w, int64_t begin, int64_t end) {
    const fd_winograd_args& a = w.args;
    for (int64_t tile = begin; tile < end; ++tile) {
        const Place at = place(w, tile);
        Target t{a, a.add ? a.add + at.b * a.add_stride : nullptr, a.residual, nullptr, a.height - at.row, a.width - at.column};
        t.out = a.out + at.b * a.out_sample_stride + at.row * a.out_row_stride + at.column * a.out_pixel_stride;
        if (t.residual)
            t.residual += at.b * a.residual_sample_stride + at.row * a.residual_row_stride + at.column * a.residual_pixel_stride;
        const float* in = w.product() + tile * w.width();
        int64_t c = 0;
        for (; c + FLOATS <= a.out_channels; c += FLOATS) transform_out<Floats>(t, c, in, w.out_stride());
        for (; c < a.out_channels; ++c) transform_out<float>(t, c, in, w.out_stride());
    }
}

}  // namespace fastdiff::FD_LEVEL
