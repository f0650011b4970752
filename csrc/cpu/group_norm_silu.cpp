// group_norm_silu: y = silu(((u - mean_g)*rstd_g*weight_c + bias_c)*(1 + scale_bc) + shift_bc), u = x + add_bc, over groups
// of channels, kernels/README.md section 12.
//
// A piece of work is a few groups of one sample, whose channels fill whole cache lines. It is read in
// blocks of 64 positions by 16 channels, in place where the dtype allows: once for the statistics and
// once more, from the cache, for the result. Either channels are contiguous in memory (channels last)
// or positions are; sums have the same order in both cases.
#include "group_norm.h"

namespace fastdiff::FD_LEVEL {

namespace {

template <class C>
struct GroupNormSilu {
    const fd_group_norm_silu_args& a;
    const int64_t positions, per_group, together, pieces_per_sample;
    const bool channels_last;

    struct State {
        alignas(64) C block[SIZE], result[SIZE], row[SIZE];
        Column<C> columns[COLUMNS];
        Group groups[MOST];
        C mean[MOST], rstd[MOST];
    };

    explicit GroupNormSilu(const fd_group_norm_silu_args& a)
        : a(a),
          positions(a.launch.elements / a.channels),
          per_group(a.channels / a.groups),
          together(groups_together(a)),
          pieces_per_sample((a.groups + together - 1) / together),
          channels_last(a.x.channel_stride == 1 && (a.out.channel_stride == 1 || a.channels == 1)) {}

    // Groups whose channels fill a strip, or fewer if threads would be idle, but at least whole cache
    // lines. No value depends on it.
    static int64_t groups_together(const fd_group_norm_silu_args& a) {
        int64_t n = 1;
        for (int64_t wide = a.x.channel_stride == 1 ? STRIP : WIDE; wide >= WIDE; wide /= 2) {
            n = aligned_groups(a.channels / a.groups, wide);
            n = n < a.groups ? n : a.groups;
            if (a.launch.batch * (a.groups / n) >= 4 * a.launch.threads) break;
        }
        return n;
    }

    // The groups that fit into this many channels, if possible whole blocks; at least one.
    static int64_t aligned_groups(int64_t per_group, int64_t wide) {
        const int64_t most = wide / per_group;
        for (int64_t n = most; 2 * n > most; --n)
            if (n * per_group % SIDE == 0) return n;
        return most > 0 ? most : 1;
    }

    int64_t pieces() const { return a.launch.batch * pieces_per_sample; }

    void operator()(int64_t piece, State& s) const {
        const int64_t b = piece / pieces_per_sample, g0 = piece % pieces_per_sample * together;
        const int64_t g1 = g0 + together < a.groups ? g0 + together : a.groups;
        const int64_t c0 = g0 * per_group, c1 = g1 * per_group;
        for (int64_t g = 0; g < g1 - g0; ++g) s.groups[g].distance.clear(), s.groups[g].square.clear();
        Walk walk = {0, 0};
        for (int64_t c = c0; c < c1; c += STRIP) gather(b, c, c1, walk, s);

        const double n = (double)per_group * (double)positions;
        for (int64_t g = 0; g < g1 - g0; ++g) {
            const double total = s.groups[g].distance.fold()[0], off = total / n;
            const double variance = (s.groups[g].square.fold()[0] - off * total) / n;
            s.mean[g] = (C)(s.groups[g].pivot + off);
            s.rstd[g] = (C)(1.0 / sqrt(variance + a.eps));
        }
        walk = {0, 0};
        for (int64_t c = c0; c < c1; c += STRIP) {
            const int64_t columns = columns_of(c, c1);
            for (int64_t j = 0; j < columns; ++j) coefficients(b, c + j * SIDE, width_of(c, j, c1), walk, s, s.columns[j].k);
            for (int64_t p = 0; p < positions; p += POSITIONS)
                for (int64_t j = 0; j < columns; ++j) {
                    const int64_t at = c + j * SIDE, width = width_of(c, j, c1), n = rows_of(p);
                    write(b, at, width, p, n, fetch(b, at, width, p, n, s), s.columns[j].k, s);
                }
        }
    }

    static int64_t columns_of(int64_t c, int64_t end) { return end - c < STRIP ? (end - c + SIDE - 1) / SIDE : COLUMNS; }
    static int64_t width_of(int64_t c, int64_t j, int64_t end) { return end - c - j * SIDE < SIDE ? end - c - j * SIDE : SIDE; }
    int64_t rows_of(int64_t p) const { return positions - p < POSITIONS ? positions - p : POSITIONS; }

    // the next group of the piece, and its next channel
    struct Walk {
        int64_t group, channel;
    };
    void step(Walk& w) const {
        if (++w.channel == per_group) w = {w.group + 1, 0};
    }

    // Adds a strip's channels in float64: combines the means of chunks, then the channels.
    void gather(int64_t b, int64_t c, int64_t end, Walk& walk, State& s) const {
        const bool several = positions > POSITIONS;
        const int64_t columns = columns_of(c, end);
        for (int64_t j = 0; several && j < columns; ++j) s.columns[j].distance.clear(), s.columns[j].square.clear();
        for (int64_t p = 0; p < positions; p += POSITIONS)
            for (int64_t j = 0; j < columns; ++j) {
                Column<C>& column = s.columns[j];
                alignas(64) C mean[SIDE];
                const int64_t n = rows_of(p), part = p / POSITIONS % SIDE;
                moments(fetch(b, c + j * SIDE, width_of(c, j, end), p, n, s), n, mean, column.squares);
                if (p == 0) memcpy(column.first, mean, sizeof mean);
                if (!several) continue;
                FD_SIMD
                for (int64_t i = 0; i < SIDE; ++i) {
                    const double d = (double)mean[i] - (double)column.first[i], weighted = (double)n * d;
                    column.distance.v[part][i] += weighted;
                    column.square.v[part][i] += (double)column.squares[i] + weighted * d;
                }
            }
        for (int64_t j = 0; j < columns; ++j) {
            Column<C>& column = s.columns[j];
            const double* total = several ? column.distance.fold() : nullptr;
            const double* whole = several ? column.square.fold() : nullptr;
            for (int64_t i = 0; i < width_of(c, j, end); ++i, step(walk)) {
                const double off = several ? total[i] / (double)positions : 0;
                const double m = several ? (double)column.first[i] + off : (double)column.first[i];
                const double q = several ? whole[i] - off * total[i] : (double)column.squares[i];
                Group& g = s.groups[walk.group];
                if (walk.channel == 0) g.pivot = m;
                const double d = m - g.pivot, weighted = (double)positions * d;
                g.distance.v[walk.channel % SIDE][0] += weighted;
                g.square.v[walk.channel % SIDE][0] += q + weighted * d;
            }
        }
    }

    // One value per channel, at [b, c] of a [batch, channels] view, or `absent`.
    static void channel_values(const fd_view& v, int64_t b, int64_t c, int64_t width, C absent, C* to) {
        for (int64_t i = 0; i < SIDE; ++i) to[i] = absent;
        if (!v.data) return;
        const fd_input flat = {v.data, v.type};
        C scratch[SIDE];
        for (int64_t i = 0; i < width;) {
            const int64_t n = v.element_stride == 1 ? width : 1;
            const C* from = load(flat, b * v.sample_stride + (c + i) * v.element_stride, n, scratch);
            for (int64_t k = 0; k < n; ++k) to[i + k] = from[k];
            i += n;
        }
    }

    // Returns the data in place if its layout and dtype fit, else a copy in the block, where absent
    // channels are 0.
    Rows<C> fetch(int64_t b, int64_t c, int64_t width, int64_t p, int64_t n, State& s) const {
        const fd_input x = {a.x.data, a.x.type};
        const int64_t start = b * a.x.sample_stride + c * a.x.channel_stride + p * a.x.position_stride;
        const int64_t across = channels_last ? a.x.position_stride : a.x.channel_stride;
        if (a.x.type == TYPE_OF<C> && !a.add.data && width == SIDE) return {(const C*)a.x.data + start, across};
        C* to = s.block;
        alignas(64) C add[SIDE];
        channel_values(a.add, b, c, width, 0, add);
        if (!channels_last) {
            if (width < SIDE) memset(to + width * n, 0, (size_t)((SIDE - width) * n) * sizeof(C));
            for (int64_t i = 0; i < width; ++i) {
                const C* from = load(x, start + i * across, n, s.row);
                const C plus = add[i];
                FD_SIMD
                for (int64_t r = 0; r < n; ++r) to[i * n + r] = from[r] + plus;
            }
            return {to, n};
        }
        if (width < SIDE) memset(to, 0, (size_t)(n * SIDE) * sizeof(C));
        for (int64_t r = 0; r < n; ++r) {
            const C* from = load(x, start + r * across, width, s.row);
            if (width == SIDE) {
                FD_SIMD
                for (int64_t i = 0; i < SIDE; ++i) to[r * SIDE + i] = from[i] + add[i];
            } else {
                for (int64_t i = 0; i < width; ++i) to[r * SIDE + i] = from[i] + add[i];
            }
        }
        return {to, SIDE};
    }

    // mean, and sum of squared distances to the mean, of each channel
    void moments(const Rows<C>& u, int64_t n, C* mean, C* squares) const {
        const C count = (C)n;
        if (!channels_last) {
            for (int64_t i = 0; i < SIDE; ++i) {
                const C* row = u.at + i * u.stride;
                const C m = sum_row(row, n, [](Lanes<C> v) __attribute__((always_inline)) { return v; }) / count;
                const Lanes<C> wide = m - Lanes<C>{};
                mean[i] = m;
                squares[i] = sum_row(row, n, [&](Lanes<C> v) __attribute__((always_inline)) { return (v - wide) * (v - wide); });
            }
            return;
        }
        for (int64_t i = 0; i < SIDE; i += LANES<C>) {
            const C* from = u.at + i;
            const Lanes<C> m = sum_rows<C>(n, [&](int64_t r) __attribute__((always_inline)) {
                return lanes_at(from + r * u.stride);
            }) / count;
            const Lanes<C> q = sum_rows<C>(n, [&](int64_t r) __attribute__((always_inline)) {
                const Lanes<C> d = lanes_at(from + r * u.stride) - m;
                return d * d;
            });
            memcpy(mean + i, &m, sizeof m);
            memcpy(squares + i, &q, sizeof q);
        }
    }

    void coefficients(int64_t b, int64_t c, int64_t width, Walk& walk, const State& s, Coefficients<C>& k) const {
        C weight[SIDE], bias[SIDE], scale[SIDE], shift[SIDE], rstd[SIDE] = {};
        channel_values({a.weight.data, a.weight.type, 0, 1}, 0, c, width, 1, weight);
        channel_values({a.bias.data, a.bias.type, 0, 1}, 0, c, width, 0, bias);
        channel_values(a.scale, b, c, width, 0, scale);
        channel_values(a.shift, b, c, width, 0, shift);
        for (int64_t i = 0; i < SIDE; ++i) k.mean[i] = 0;
        for (int64_t i = 0; i < width; ++i, step(walk)) k.mean[i] = s.mean[walk.group], rstd[i] = s.rstd[walk.group];
        for (int64_t i = 0; i < SIDE; ++i) {
            const C wide = 1 + scale[i];
            k.gain[i] = (rstd[i] * weight[i]) * wide;
            k.shift[i] = bias[i] * wide + shift[i];
        }
    }

    // Computes the result of a block, directly in the output if its layout and dtype fit.
    void write(int64_t b, int64_t c, int64_t width, int64_t p, int64_t n, const Rows<C>& u, const Coefficients<C>& k, State& s) const {
        const fd_output out = {a.out.data, a.out.type};
        const int64_t start = b * a.out.sample_stride + c * a.out.channel_stride + p * a.out.position_stride;
        const int64_t across = channels_last ? a.out.position_stride : a.out.channel_stride;
        const int64_t rows = channels_last ? n : width, length = channels_last ? width : n;
        const bool direct = a.out.type == TYPE_OF<C> && width == SIDE;
        C* to = direct ? (C*)a.out.data + start : s.result;
        const int64_t step = direct ? across : channels_last ? SIDE : n;
        if (channels_last)
            a.silu ? columns<true>(u, n, k, to, step) : columns<false>(u, n, k, to, step);
        else
            a.silu ? across_rows<true>(u, n, k, to, step) : across_rows<false>(u, n, k, to, step);
        if (direct) return;
        for (int64_t r = 0; r < rows; ++r) save(out, start + r * across, length, to + r * step);
    }

    template <bool SILU>
    static void columns(const Rows<C>& u, int64_t n, const Coefficients<C>& k, C* to, int64_t step) {
        for (int64_t r = 0; r < n; ++r) {
            const C* from = u.at + r * u.stride;
            C* row = to + r * step;
            FD_SIMD
            for (int64_t i = 0; i < SIDE; ++i) {
                const C z = (from[i] - k.mean[i]) * k.gain[i] + k.shift[i];
                row[i] = SILU ? silu(z) : z;
            }
        }
    }

    template <bool SILU>
    static void across_rows(const Rows<C>& u, int64_t n, const Coefficients<C>& k, C* to, int64_t step) {
        for (int64_t i = 0; i < SIDE; ++i) {
            const C *from = u.at + i * u.stride, mean = k.mean[i], gain = k.gain[i], shift = k.shift[i];
            C* row = to + i * step;
            FD_SIMD
            for (int64_t r = 0; r < n; ++r) {
                const C z = (from[r] - mean) * gain + shift;
                row[r] = SILU ? silu(z) : z;
            }
        }
    }
};

template <class C>
void run(const fd_group_norm_silu_args& a) {
    const GroupNormSilu<C> body(a);
    const int64_t pieces = body.pieces();
    int64_t threads = a.launch.batch * a.launch.elements / GRAIN;
    threads = threads < a.launch.threads ? threads : a.launch.threads;
    threads = threads < pieces ? threads : pieces;
    auto range = [&](int64_t first, int64_t last, typename GroupNormSilu<C>::State& state) {
        for (int64_t i = first; i < last; ++i) body(i, state);
    };
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (int64_t k = 0; k < threads; ++k) {
            typename GroupNormSilu<C>::State state;
            range(pieces * k / threads, pieces * (k + 1) / threads, state);
        }
        return;
    }
#endif
    typename GroupNormSilu<C>::State state;
    range(0, pieces, state);
}

}  // namespace

void group_norm_silu(const fd_group_norm_silu_args& args) {
    if (args.x.type == FD_FLOAT64)
        run<double>(args);
    else
        run<float>(args);
}

}  // namespace fastdiff::FD_LEVEL
