// group_norm_silu: silu(((u - mean)*rstd*weight + bias)*(1 + scale) + shift), u = x + add, kernels/README.md section 12.
//
// Three kernels: the moments of chunks of 64 positions, one block for 16 channels of a chunk; the
// statistics of groups from them, in float64; and the result. Sums have the order of the section, so
// the statistics have the same bits as on the CPU.
#include "memory.h"

namespace fastdiff::FD_LEVEL {

enum { SIDE = 16, MAP = SIDE * SIDE, PITCH = SIDE + 1 };  // PITCH: columns and rows use different banks

// Sums 16 values that are `step` apart, folded by halves, depth first.
template <int J = 0, int STEP = 1, class T>
FD_HD T folded(const T* part, int step) {
    if constexpr (STEP == SIDE)
        return part[J * step];
    else
        return folded<J, 2 * STEP>(part, step) + folded<J + STEP, 2 * STEP>(part, step);
}

template <class C>
FD_HD C value_at(const void* from, int64_t type, int64_t at) {
    C v[4];
    load<false>(from, type, {at, 1, false}, v);
    return v[0];
}

template <class C>
FD_HD C value_at(const fd_view& v, int64_t b, int64_t c) {
    return value_at<C>(v.data, v.type, b * v.sample_stride + c * v.element_stride);
}

struct Shape {
    int64_t positions, chunks, per_group;

    explicit Shape(const fd_group_norm_silu_args& a)
        : positions(a.launch.elements / a.channels), chunks((positions + FD_POSITIONS - 1) / FD_POSITIONS), per_group(a.channels / a.groups) {}
};

// A thread adds up to four positions of one channel: row i of the chunk is added to partial sum i mod 16.
template <class C>
struct GroupNormMoments {
    fd_group_norm_silu_args a;
    Shape s;

    struct Shared {
        C u[FD_POSITIONS / SIDE][MAP], sum[SIDE * PITCH], squares[SIDE * PITCH];
    };
    enum { PHASES = 3, THREADS = MAP };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& shared) const {
        const int64_t tiles = (a.channels + SIDE - 1) / SIDE, b = block.x / tiles;
        const bool last = a.x.channel_stride == 1;
        const int j = last ? thread / SIDE : thread % SIDE, lane = last ? thread % SIDE : thread / SIDE;
        const int64_t c = block.x % tiles * SIDE + lane, p = block.chunk * FD_POSITIONS, left = s.positions - p;
        if (c >= a.channels || left <= 0) return;
        const int n = left < FD_POSITIONS ? (int)left : FD_POSITIONS, rows = n > j ? (n - j + SIDE - 1) / SIDE : 0;
        if (k == 0) {
            const C add = a.add.data ? value_at<C>(a.add, b, c) : (C)0;
            const int64_t start = b * a.x.sample_stride + c * a.x.channel_stride + (p + j) * a.x.position_stride;
            C sum = 0;
            FD_UNROLL
            for (int i = 0; i < FD_POSITIONS / SIDE; ++i) {
                if (i >= rows) continue;
                const C u = value_at<C>(a.x.data, a.x.type, start + i * SIDE * a.x.position_stride) + add;
                shared.u[i][thread] = u;
                sum = sum + u;
            }
            shared.sum[j * PITCH + lane] = sum;
            return;
        }
        const C mean = folded(shared.sum + lane, PITCH) / (C)n;
        if (k == 1) {
            C sum = 0;
            FD_UNROLL
            for (int i = 0; i < FD_POSITIONS / SIDE; ++i) {
                if (i >= rows) continue;
                const C d = shared.u[i][thread] - mean;
                sum = sum + d * d;
            }
            shared.squares[j * PITCH + lane] = sum;
        } else if (j == 0) {
            C* to = (C*)a.workspace + (b * s.chunks + block.chunk) * a.channels + c;
            to[0] = mean;
            to[a.launch.batch * s.chunks * a.channels] = folded(shared.squares + lane, PITCH);
        }
    }
};

// 16 threads per group: thread i adds its channels i, i + 16 …
template <class C>
struct GroupNormStatistics {
    fd_group_norm_silu_args a;
    Shape s;

    struct Channel {
        double mean, squares;
    };
    struct Shared {
        Channel first[MAP];
        double distance[MAP], square[MAP];
    };
    enum { PHASES = 3, THREADS = MAP };

    FD_MEMBER void phase(int k, Block block, int thread, Shared& shared) const {
        const int lane = thread % SIDE;
        const int64_t group = block.x * SIDE + thread / SIDE;
        if (group >= a.launch.batch * a.groups || block.chunk) return;
        const int64_t b = group / a.groups, c = group % a.groups * s.per_group;
        if (k == 0) {
            if (lane < s.per_group) shared.first[thread] = channel(b, c + lane);
        } else if (k == 1) {
            const double pivot = shared.first[thread - lane].mean, n = (double)s.positions;
            double distance = 0, square = 0;
            for (int64_t i = lane; i < s.per_group; i += SIDE) {
                const Channel of = i == lane ? shared.first[thread] : channel(b, c + i);
                const double d = of.mean - pivot, weighted = n * d;
                distance = distance + weighted;
                square = square + (of.squares + weighted * d);
            }
            shared.distance[thread] = distance;
            shared.square[thread] = square;
        } else if (lane == 0) {
            const double n = (double)s.per_group * (double)s.positions;
            const double total = folded(shared.distance + thread, 1), off = total / n;
            const double variance = (folded(shared.square + thread, 1) - off * total) / n;
            C* to = (C*)a.statistics + group;
            to[0] = (C)(shared.first[thread].mean + off);
            to[a.launch.batch * a.groups] = (C)(1.0 / sqrt(variance + a.eps));
        }
    }

    FD_MEMBER Channel channel(int64_t b, int64_t c) const {
        const C* mean = (const C*)a.workspace + b * s.chunks * a.channels + c;
        const C* squares = mean + a.launch.batch * s.chunks * a.channels;
        if (s.chunks == 1) return {(double)mean[0], (double)squares[0]};
        double distance[SIDE] = {}, square[SIDE] = {};
        const double first = (double)mean[0], all = (double)s.positions;
        for (int64_t k = 0; k < s.chunks; k += SIDE) {
            // loads are independent of each other
            FD_UNROLL
            for (int j = 0; j < SIDE; ++j) {
                if (k + j >= s.chunks) continue;
                const int64_t left = s.positions - (k + j) * FD_POSITIONS, at = (k + j) * a.channels;
                const double d = (double)mean[at] - first, weighted = (double)(left < (int64_t)FD_POSITIONS ? left : (int64_t)FD_POSITIONS) * d;
                distance[j] = distance[j] + weighted;
                square[j] = square[j] + ((double)squares[at] + weighted * d);
            }
        }
        const double total = folded(distance, 1), off = total / all;
        return {first + off, folded(square, 1) - off * total};
    }
};

// A thread has four contiguous values (channels, or positions of one channel) in each of its rows.
template <class C, bool LAST>
struct GroupNormSilu {
    fd_group_norm_silu_args a;
    Shape s;
    int width;    // threads along a row
    bool vector;  // four values can be moved at once

    using Shared = None;
    enum { PHASES = 1, THREADS = 256, ROWS = LAST ? 8 : 1 };

    FD_MEMBER void phase(int, Block block, int thread, Shared&) const {
        const int64_t tiles = LAST ? (a.channels + 4 * width - 1) / (4 * width) : a.channels, b = block.x / tiles;
        const int64_t across = LAST ? (block.x % tiles * width + thread % width) * 4 : (block.chunk * width + thread) * 4;
        const int64_t left = (LAST ? a.channels : s.positions) - across;
        if (left <= 0) return;
        const int64_t first = LAST ? across : block.x % tiles;
        const int count = left < 4 ? (int)left : 4;
        C mean[4] = {}, gain[4] = {}, shift[4] = {};
        FD_UNROLL
        for (int i = 0; i < (LAST ? 4 : 1); ++i)
            if (i < count) coefficients(b, first + i, mean[i], gain[i], shift[i]);
        FD_UNROLL
        for (int i = LAST ? 4 : 1; i < 4; ++i) mean[i] = mean[0], gain[i] = gain[0], shift[i] = shift[0];
        C add[4] = {};
        if (a.add.data) {
            FD_UNROLL
            for (int i = 0; i < 4; ++i)
                if (i < count) add[i] = value_at<C>(a.add, b, LAST ? first + i : first);
        }
        const int64_t row = LAST ? (block.chunk * ROWS) * (THREADS / width) + thread / width : first;
        FD_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const int64_t at = row + r * (THREADS / width);
            if (LAST && at >= s.positions) continue;
            C u[4];
            load<false>(a.x.data, a.x.type, {place(a.x, b, at, across), count, vector}, u);
            FD_UNROLL
            for (int i = 0; i < 4; ++i) {
                const C v = a.add.data ? u[i] + add[i] : u[i];
                const C z = (v - mean[i]) * gain[i] + shift[i];
                u[i] = a.silu ? silu(z) : z;
            }
            store<false>({a.out.data, a.out.type}, {place(a.out, b, at, across), count, vector}, u);
        }
    }

    FD_MEMBER int64_t place(const fd_map& m, int64_t b, int64_t row, int64_t across) const {
        return b * m.sample_stride + row * (LAST ? m.position_stride : m.channel_stride) + across;
    }

    FD_MEMBER void coefficients(int64_t b, int64_t c, C& mean, C& gain, C& shift) const {
        const C* statistics = (const C*)a.statistics + b * a.groups + c / s.per_group;
        const C wide = a.scale.data ? 1 + value_at<C>(a.scale, b, c) : (C)1;
        mean = statistics[0];
        gain = statistics[a.launch.batch * a.groups];
        if (a.weight.data) gain = gain * value_at<C>(a.weight.data, a.weight.type, c);
        gain = gain * wide;
        shift = (a.bias.data ? value_at<C>(a.bias.data, a.bias.type, c) : (C)0) * wide;
        if (a.shift.data) shift = shift + value_at<C>(a.shift, b, c);
    }
};

// Whether every row of a map is aligned for moving four values at once.
static bool whole(const fd_map& m, bool last, int64_t length) {
    const int64_t bytes = m.type == FD_FLOAT16 || m.type == FD_BFLOAT16 ? 8 : 16;
    return length % 4 == 0 && m.sample_stride % 4 == 0 && (last ? m.position_stride : m.channel_stride) % 4 == 0 &&
           (uintptr_t)m.data % (uintptr_t)bytes == 0;
}

template <class C>
static int run_group_norm(const fd_group_norm_silu_args& a) {
    const fd_launch& l = a.launch;
    const Shape s(a);
    const int64_t tiles = (a.channels + SIDE - 1) / SIDE;
    if (int status = launch(FD_GROUP_NORM_MOMENTS, l, {l.batch * tiles, s.chunks, MAP}, GroupNormMoments<C>{a, s})) return status;
    const int64_t blocks = (l.batch * a.groups + SIDE - 1) / SIDE;
    if (int status = launch(FD_GROUP_NORM_STATISTICS, l, {blocks, 1, MAP}, GroupNormStatistics<C>{a, s})) return status;

    const bool last = a.x.channel_stride == 1 && (a.out.channel_stride == 1 || a.channels == 1);
    const int64_t length = last ? a.channels : s.positions;
    const bool vector = whole(a.x, last, length) && whole(a.out, last, length);
    int width = last ? 1 : 32;
    while (width < (last ? 64 : 256) && width * 4 < length) width *= 2;
    if (last) {
        const int64_t across = (length + 4 * width - 1) / (4 * width), rows = 8 * (256 / width);
        return launch(FD_GROUP_NORM_SILU, l, {l.batch * across, (s.positions + rows - 1) / rows, 256},
                      GroupNormSilu<C, true>{a, s, width, vector});
    }
    return launch(FD_GROUP_NORM_SILU, l, {l.batch * a.channels, (length + 4 * width - 1) / (4 * width), width},
                  GroupNormSilu<C, false>{a, s, width, vector});
}

}  // namespace fastdiff::FD_LEVEL

int fd_group_norm_silu(const fd_group_norm_silu_args* args) {
    using namespace fastdiff::FD_LEVEL;
    const fd_launch& l = args->launch;
    if (int status = check(l)) return status;
    if (args->channels < 1 || args->groups < 1 || args->channels % args->groups || l.elements % args->channels)
        return fail(FD_VALUE_ERROR, "expected channels in equal groups, got %lld channels in %lld groups.",
                    (long long)args->channels, (long long)args->groups);
    if (l.batch == 0 || l.elements == 0) return FD_OK;
    if (!args->workspace || !args->statistics)
        return fail(FD_VALUE_ERROR, "expected a workspace and memory for statistics, got none.");
    return args->x.type == FD_FLOAT64 ? run_group_norm<double>(*args) : run_group_norm<float>(*args);
}
