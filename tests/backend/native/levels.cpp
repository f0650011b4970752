// Runs every op at every CPU level that this processor has and prints a digest per (op, dtype, level): equal digests mean equal
// bits. Linked statically, the program also runs in an emulator of a processor with more levels (tests/backend/native/README.md).
// Exits with 1 when two levels differ. It is over 400 lines because it has a function for every op.
#include <cstdio>
#include <cstring>
#include <vector>

#include "fastdiff/ops.h"

namespace {

uint64_t state = 88172645463325252ull;
uint64_t next_word() { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; }
double uniform() { return double(next_word() >> 11) * 0x1p-53; }  // [0, 1)

uint64_t digest(uint64_t h, const void* data, size_t bytes) {  // FNV-1a
    const unsigned char* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) h = (h ^ p[i]) * 1099511628211ull;
    return h;
}
constexpr uint64_t SEED = 14695981039346656037ull;
size_t size_of(int64_t type) { return type == FD_FLOAT64 ? 8 : type == FD_FLOAT32 ? 4 : 2; }

// Returns values of any dtype, drawn by `fd_randn` at the baseline level, so that all levels start from the same bits.
std::vector<unsigned char> values(int64_t batch, int64_t n, int64_t type, uint64_t seed) {
    std::vector<unsigned char> data(size_t(batch * n) * size_of(type));
    fd_randn_args a = {{batch, n, FD_BASELINE, 1}, {seed, nullptr, nullptr, 0, 0}, {data.data(), type}};
    fd_randn(&a);
    return data;
}

uint64_t run_randn(int64_t level, int64_t type) {
    uint64_t h = SEED;
    const int64_t sizes[] = {1, 2, 3, 4, 5, 31, 64, 127, 1001, 4099}, ids[] = {0, 7, 1ll << 32, (1ll << 56) - 1, 5};
    const uint64_t seeds[] = {0, 42, 1ull << 63, ~0ull};
    for (int64_t n : sizes)
        for (uint64_t seed : seeds)
            for (uint64_t stream = 0; stream < 6; ++stream) {
                std::vector<unsigned char> out(size_t(5 * n) * size_of(type));
                fd_randn_args a = {{5, n, level, 1}, {seed, nullptr, ids, 4294967295u - stream, stream}, {out.data(), type}};
                if (fd_randn(&a)) return 0;
                h = digest(h, out.data(), out.size());
            }
    return h;
}

// Windows of larger samples: the upper bits of the stream.
uint64_t run_windows(int64_t level, int64_t type) {
    uint64_t h = SEED;
    for (int64_t n : {3, 16, 1001, 4099})
        for (uint64_t group : {1ull, 255ull, (1ull << 32) - 4099}) {
            std::vector<unsigned char> out(size_t(5 * n) * size_of(type));
            fd_randn_args a = {{5, n, level, 1}, {42, nullptr, nullptr, 3, group << 8 | 1}, {out.data(), type}};
            if (fd_randn(&a)) return 0;
            h = digest(h, out.data(), out.size());
        }
    return h;
}

uint64_t run_q_sample(int64_t level, int64_t type) {
    uint64_t h = SEED;
    const int64_t t[] = {0, 9, 4};
    double alpha[10], sigma[10];
    for (int i = 0; i < 10; ++i) alpha[i] = 1.0 / (1 + i), sigma[i] = i / (1.5 + i);
    for (int64_t n : {1, 7, 64, 1003}) {
        const auto x0 = values(3, n, type, 11);
        std::vector<unsigned char> out(x0.size());
        fd_q_sample_args a = {{3, n, level, 1}, {3, nullptr, nullptr, 5, 2}, {x0.data(), type}, {out.data(), type},
                              t, alpha, sigma, 10, {}};
        if (fd_q_sample(&a)) return 0;
        h = digest(h, out.data(), out.size());
    }
    return h;
}

// Random rows that use every column but those of the prepasses: guidance, gradient, clip, slots, next input, and learned variance
// where the compute type is float32.
uint64_t step_digest(int64_t level, int64_t type, double out_uncond) {
    uint64_t h = SEED;
    state = 88172645463325252ull;
    constexpr int64_t rows = 6, batch = 6, columns = 62, uncond = 56;
    double table[rows * columns] = {};
    for (int64_t r = 0; r < rows; ++r) {
        double* row = table + r * columns;
        for (int64_t c = 0; c < uncond; ++c) row[c] = uniform() < 0.5 ? 0.0 : 4 * uniform() - 2;
        row[uncond] = out_uncond;
        const double header[16] = {1, 10.0 * r, 0.5 + r, r % 2 ? 1.0 : 0.5, 0, row[5], row[6], row[7],
                                   double(r % 2), 0.7, 0, double(r), double(r % 3 == 1), -4, -1, r + 1 < rows ? r + 1.0 : r};
        std::memcpy(row, header, sizeof header);
    }
    const int64_t index[batch] = {0, 1, 2, 3, 4, 5};
    const float gamma32[batch] = {0, 1, 2.5f, -1, 7.5f, 1};
    const double gamma64[batch] = {0, 1, 2.5, -1, 7.5, 1};
    const bool wide = type == FD_FLOAT64;
    // learned variance needs exp, which in float64 is the platform's
    for (int64_t r = 0; wide && r < rows; ++r) table[r * columns + 12] = 0;
    for (int64_t n : {2, 9, 70, 1030}) {
        const int64_t compute = wide ? FD_FLOAT64 : FD_FLOAT32;
        const auto x = values(batch, n, type, 1), output = values(2 * batch, 2 * n, type, 2);
        const auto gradient = values(batch, n, type, 3);
        auto slots = values(4 * batch, n, compute, 4);
        std::vector<unsigned char> out(x.size()), x0(slots.size() / 4), input(size_t(2 * batch * n) * 2);
        int64_t row_out[batch];
        fd_reverse_step_args a = {};
        a.launch = {batch, n, level, 1};
        a.draw = {9, nullptr, nullptr, 0, 1};
        a.seeded = 1;
        a.x_t = {x.data(), type}, a.x_s = {out.data(), type};
        a.model_output = {output.data(), type}, a.output_elements = 2 * n;
        a.table = table, a.rows = rows, a.row = index;
        a.slots = a.slots_out = slots.data(), a.slot_count = a.slots_out_count = 4;
        a.guidance = wide ? static_cast<const void*>(gamma64) : gamma32;
        a.gradient = {gradient.data(), type};
        a.x0_out = {x0.data(), compute};
        a.input_out = {input.data(), FD_BFLOAT16}, a.input_copies = 2, a.row_out = row_out;
        if (fd_reverse_step(&a)) return 0;
        for (const auto* v : {&out, &slots, &x0, &input}) h = digest(h, v->data(), v->size());
        h = digest(h, row_out, sizeof row_out);
    }
    return h;
}

uint64_t run_reverse_step(int64_t level, int64_t type) { return step_digest(level, type, 0); }

// The same rows, whose combinations read the unconditional output.
uint64_t run_renoising_step(int64_t level, int64_t type) { return step_digest(level, type, 1); }

// The rows that most samplers have: DDPM and DDIM, clipped or not, at several steps of one batch.
uint64_t run_plain_step(int64_t level, int64_t type) {
    uint64_t h = SEED;
    constexpr int64_t rows = 4, batch = 5, columns = 62;
    double table[rows * columns] = {};
    for (int64_t r = 0; r < rows; ++r) {
        double* row = table + r * columns;
        row[0] = 1, row[2] = 1, row[3] = 1, row[6] = 1.25 + r, row[7] = -0.75, row[8] = double(r / 2), row[9] = 0.9;
        row[11] = double(r), row[15] = r + 1 < rows ? r + 1.0 : r;
        row[16] = 0.625, row[17] = 0.3125, row[23] = r % 2 ? 0.1 : 0.0;
    }
    const int64_t index[batch] = {0, 1, 1, 2, 3};
    for (int64_t n : {1, 6, 64, 1021, 2050}) {
        auto x = values(batch, n, type, 1);
        const auto output = values(batch, n, type, 2);
        fd_reverse_step_args a = {};
        a.launch = {batch, n, level, 1};
        a.draw = {9, nullptr, nullptr, 0, 1};
        a.seeded = 1;
        a.x_t = {x.data(), type}, a.x_s = {x.data(), type};  // in place
        a.model_output = {output.data(), type}, a.output_elements = n;
        a.table = table, a.rows = rows, a.row = index;
        if (fd_reverse_step(&a)) return 0;
        h = digest(h, x.data(), x.size());
    }
    return h;
}

// The log-probability of drawn steps, plain and with slots and learned variance (float32), in place of the rows' own
// results: as it is sampled, and then scored.
uint64_t run_step_log_prob(int64_t level, int64_t type) {
    uint64_t h = SEED;
    constexpr int64_t rows = 4, batch = 5, columns = 62;
    const bool wide = type == FD_FLOAT64;
    const int64_t compute = wide ? FD_FLOAT64 : FD_FLOAT32;
    double table[rows * columns] = {};
    for (int64_t r = 0; r < rows; ++r) {
        double* row = table + r * columns;
        row[0] = 1, row[2] = 1, row[3] = 1, row[6] = 1.25 + r, row[7] = -0.75, row[8] = double(r / 2), row[9] = 0.9;
        row[11] = double(r), row[12] = double(r == 3 && !wide), row[13] = -3, row[14] = -1, row[15] = r + 1 < rows ? r + 1.0 : r;
        row[16] = 0.625, row[17] = 0.3125, row[19] = r % 2 ? 0.5 : 0.0, row[23] = r == 2 ? 0.4 : 0.1;
    }
    const int64_t index[batch] = {0, 1, 1, 2, 3};
    for (int64_t n : {2, 8, 69, 130, 1024, 1030, 3000}) {
        const auto x = values(batch, n, type, 1), output = values(batch, 2 * n, type, 2), slots = values(batch, n, compute, 3);
        std::vector<unsigned char> x_s(x.size()), score(size_t(batch) * size_of(compute)), again(score.size());
        std::vector<double> partials(size_t(batch * ((n + FD_CHUNK - 1) / FD_CHUNK)));
        fd_step_log_prob_args b = {};
        fd_reverse_step_args& a = b.step;
        a.launch = {batch, n, level, 1};
        a.draw = {9, nullptr, nullptr, 0, 1};
        a.seeded = 1;
        a.x_t = {x.data(), type}, a.x_s = {x_s.data(), type};
        a.model_output = {output.data(), type}, a.output_elements = 2 * n;
        a.table = table, a.rows = rows, a.row = index;
        a.slots = slots.data(), a.slot_count = 1;
        a.log_prob = score.data(), a.partials = partials.data();
        if (fd_reverse_step(&a)) return 0;
        a.log_prob = again.data(), a.seeded = 0;
        if (fd_step_log_prob(&b) || again != score) return 0;
        h = digest(digest(h, x_s.data(), x_s.size()), score.data(), score.size());
    }
    return h;
}

// Dynamic thresholds and rescaled guidance.
uint64_t run_prepass_step(int64_t level, int64_t type) {
    uint64_t h = SEED;
    constexpr int64_t batch = 3, columns = 62;
    double table[2 * columns] = {};
    for (int64_t r = 0; r < 2; ++r) {
        double* row = table + r * columns;
        row[0] = 1, row[2] = 1, row[3] = 1, row[4] = r ? 0.7 : 0, row[6] = 1.5, row[7] = -1, row[8] = 2, row[9] = 3;
        row[10] = r ? 0.995 : 0.5, row[15] = double(r), row[16] = 0.5, row[17] = 0.25;
    }
    const int64_t index[batch] = {0, 1, 1};
    const float gamma32[batch] = {2.5f, 4, 0};
    const double gamma64[batch] = {2.5, 4, 0};
    double rescale[batch], threshold[batch];
    for (int64_t n : {2, 65, 1500}) {
        const auto x = values(batch, n, type, 1), output = values(2 * batch, n, type, 2);
        std::vector<unsigned char> out(x.size());
        fd_reverse_step_args a = {};
        a.launch = {batch, n, level, 1};
        a.x_t = {x.data(), type}, a.x_s = {out.data(), type};
        a.model_output = {output.data(), type}, a.output_elements = n;
        a.table = table, a.rows = 2, a.row = index;
        a.guidance = type == FD_FLOAT64 ? static_cast<const void*>(gamma64) : gamma32;
        a.rescale = rescale, a.threshold = threshold;
        if (fd_reverse_step(&a)) return 0;
        h = digest(h, out.data(), out.size());
    }
    return h;
}

// Every kind of guidance with rescale, where a slot holds what a row with momentum leaves.
uint64_t run_kinds_step(int64_t level, int64_t type) {
    uint64_t h = SEED;
    constexpr int64_t rows = 6, batch = 7, columns = 62;
    double table[rows * columns] = {};
    for (int64_t r = 0; r < rows; ++r) {
        double* row = table + r * columns;
        row[0] = 1, row[2] = 1, row[3] = r % 2 ? 1 : 0.5, row[4] = r % 3 ? 0 : 0.7, row[6] = 1.5, row[7] = -1;
        row[15] = double(r), row[16] = 0.5, row[17] = 0.25, row[18] = 0.125, row[56] = double(r == 4);
        row[57] = double(r), row[58] = r % 2 ? 0.25 : 0, row[59] = r > 2 ? -0.75 : 0, row[60] = r > 1 ? 3 : 0;
        row[61] = r > 3 ? -0.5 : 0;
    }
    const int64_t index[batch] = {0, 1, 2, 3, 4, 5, 5};
    const float gamma32[batch] = {2.5f, 4, 0, 7.5f, -1, 3, 1};
    const double gamma64[batch] = {2.5, 4, 0, 7.5, -1, 3, 1};
    double rescale[batch], terms[4 * batch];
    for (int64_t n : {2, 9, 65, 1500}) {
        const int64_t compute = type == FD_FLOAT64 ? FD_FLOAT64 : FD_FLOAT32;
        const auto x = values(batch, n, type, 1), output = values(2 * batch, n, type, 2);
        auto slots = values(4 * batch, n, compute, 4);
        std::vector<unsigned char> out(x.size());
        fd_reverse_step_args a = {};
        a.launch = {batch, n, level, 1};
        a.x_t = {x.data(), type}, a.x_s = {out.data(), type};
        a.model_output = {output.data(), type}, a.output_elements = n;
        a.table = table, a.rows = rows, a.row = index;
        a.slots = a.slots_out = slots.data(), a.slot_count = a.slots_out_count = 4;
        a.guidance = type == FD_FLOAT64 ? static_cast<const void*>(gamma64) : gamma32;
        a.rescale = rescale, a.terms = terms;
        if (fd_reverse_step(&a)) return 0;
        h = digest(h, out.data(), out.size());
        h = digest(h, slots.data(), slots.size());
    }
    return h;
}

// Inputs and buffers of the other ops, forward and backward, for three samples of n elements.
struct Arrays {
    int64_t n, type, compute;
    std::vector<unsigned char> a, b, c, d, out;
    std::vector<double> sums, buffer, grad;

    Arrays(int64_t n, int64_t type) : n(n), type(type), compute(type == FD_FLOAT64 ? FD_FLOAT64 : FD_FLOAT32),
        a(values(3, n, type, 1)), b(values(3, n, type, 2)), c(values(3, n, type, 3)), d(values(3, n, type, 4)),
        out(a.size()), sums(3), buffer(3 * ((n + FD_CHUNK - 1) / FD_CHUNK) + 3), grad(3) {
        for (int i = 0; i < 3; ++i)
            if (compute == FD_FLOAT64) grad[size_t(i)] = 0.5 + i;
            else reinterpret_cast<float*>(grad.data())[i] = 0.5f + float(i);
    }
    fd_view view(const std::vector<unsigned char>& v) const { return {v.data(), type, n, 1}; }
    fd_input in(const std::vector<unsigned char>& v) const { return {v.data(), type}; }
    uint64_t digest_of(uint64_t h, bool backward) const {
        return backward ? digest(h, out.data(), out.size()) : digest(h, sums.data(), 3 * size_of(compute));
    }
};

template <class Run>
uint64_t every_size(int64_t type, Run run) {
    uint64_t h = SEED;
    for (int64_t n : {1, 5, 64, 100, 1024, 1030, 3000})
        for (bool backward : {false, true}) {
            Arrays v(n, type);
            if (run(v, backward)) return 0;
            h = v.digest_of(h, backward);
        }
    return h;
}

uint64_t run_noise_mse(int64_t level, int64_t type) {
    return every_size(type, [&](Arrays& v, bool backward) {
        fd_noise_mse_args a = {};
        a.launch = {3, v.n, level, 1}, a.draw = {7, nullptr, nullptr, 0, 2}, a.prediction = v.in(v.a);
        a.loss = v.sums.data(), a.workspace = v.buffer.data();
        if (backward) a.grad = v.grad.data(), a.g_prediction = {v.out.data(), type};
        return fd_noise_mse(&a);
    });
}

uint64_t run_gaussian_kl(int64_t level, int64_t type) {
    return every_size(type, [&](Arrays& v, bool backward) {
        fd_gaussian_kl_args a = {};
        a.launch = {3, v.n, level, 1}, a.compute = v.compute;
        a.mean1 = v.view(v.a), a.logvar1 = v.view(v.b), a.mean2 = v.view(v.c), a.logvar2 = {v.d.data(), type, 0, 0};
        a.kl = v.sums.data(), a.workspace = v.buffer.data();
        if (backward) a.grad = v.grad.data(), a.g_logvar2 = {v.out.data(), type};
        return fd_gaussian_kl(&a);
    });
}

uint64_t run_nll(int64_t level, int64_t type) {
    return every_size(type, [&](Arrays& v, bool backward) {
        fd_discretized_gaussian_nll_args a = {};
        a.launch = {3, v.n, level, 1}, a.compute = v.compute;
        a.x0 = v.view(v.a), a.mean = v.view(v.b), a.log_scale = v.view(v.c);
        a.nll = v.sums.data(), a.workspace = v.buffer.data();
        if (backward) a.grad = v.grad.data(), a.g_log_scale = {v.out.data(), type};
        return fd_discretized_gaussian_nll(&a);
    });
}

uint64_t run_vlb_terms(int64_t level, int64_t type) {
    const double table[18] = {1.01, -0.1, 1, 0.9, 0.1, -5, -5, -4, 1, 1.1, -0.3, 2, 0.05, 0.94, -4, -4, -3, 0};
    const int64_t t[3] = {0, 1, 1};
    return every_size(type, [&](Arrays& v, bool backward) {
        fd_vlb_terms_args a = {};
        a.launch = {3, v.n, level, 1}, a.x0 = v.in(v.a), a.x_t = v.in(v.b), a.model_output = v.in(v.c);
        a.output_elements = v.n, a.table = table, a.rows = 2, a.t = t;
        a.terms = v.sums.data(), a.workspace = v.buffer.data();
        if (backward) a.grad = v.grad.data(), a.g_output = {v.out.data(), type};
        return fd_vlb_terms(&a);
    });
}

uint64_t run_reparameterize(int64_t level, int64_t type) {
    uint64_t h = SEED;
    for (int64_t n : {1, 5, 64, 1030})
        for (bool backward : {false, true}) {
            Arrays v(n, type);
            fd_reparameterize_args a = {};
            a.launch = {3, n, level, 1}, a.draw = {7, nullptr, nullptr, 0, 3}, a.mean = v.in(v.a), a.logvar = v.in(v.b);
            if (backward) a.grad = v.in(v.c), a.g_logvar = {v.out.data(), type};
            else a.z = {v.out.data(), type};
            if (fd_reparameterize(&a)) return 0;
            h = digest(h, v.out.data(), v.out.size());
        }
    return h;
}

// Groups of 1, 3, 10 and 24 channels, channels last and first, with all optional arguments.
uint64_t run_group_norm_silu(int64_t level, int64_t type) {
    uint64_t h = SEED;
    const int64_t sizes[][3] = {{32, 32, 70}, {24, 8, 130}, {40, 4, 1030}, {24, 1, 3}};
    for (const auto& [channels, groups, positions] : sizes)
        for (bool last : {false, true}) {
            const int64_t n = channels * positions;
            Arrays v(n, type);
            const auto vectors = values(3, 5 * channels, type, 5);
            auto view = [&](int64_t i) {
                return fd_view{vectors.data() + size_t(i * channels) * size_of(type), type, 5 * channels, 1};
            };
            const int64_t across = last ? 1 : positions, along = last ? channels : 1;
            fd_group_norm_silu_args a = {};
            a.launch = {3, n, level, 1}, a.channels = channels, a.groups = groups, a.eps = 1e-5, a.silu = 1;
            a.x = {v.a.data(), type, n, across, along}, a.out = {v.out.data(), type, n, across, along};
            a.weight = {view(0).data, type}, a.bias = {view(1).data, type};
            a.scale = view(2), a.shift = view(3), a.add = view(4);
            if (fd_group_norm_silu(&a)) return 0;
            h = digest(h, v.out.data(), v.out.size());
        }
    return h;
}

uint64_t run_q_posterior(int64_t level, int64_t type) {
    const double cumulative[4] = {0.99, 0.9, 0.5, 0.01};
    const int64_t t[3] = {0, 3, 1};
    uint64_t h = SEED;
    for (int64_t n : {1, 5, 64, 1030}) {
        Arrays v(n, type);
        fd_q_posterior_args a = {};
        a.launch = {3, n, level, 1}, a.x0 = v.in(v.a), a.x_t = v.in(v.b), a.t = t, a.alphas_cumprod = cumulative, a.times = 4;
        a.mean = {v.out.data(), type}, a.variance = v.sums.data(), a.log_variance = v.buffer.data();
        if (fd_q_posterior(&a)) return 0;
        h = digest(digest(h, v.out.data(), v.out.size()), v.sums.data(), 3 * size_of(v.compute));
    }
    return h;
}

}  // namespace

int main() {
    const char *levels[] = {"baseline", "avx2", "avx512"}, *types[] = {"float32", "float64", "float16", "bfloat16"};
    struct {
        const char* name;
        uint64_t (*run)(int64_t level, int64_t type);
    } const ops[] = {
        {"randn", run_randn}, {"windows", run_windows}, {"q_sample", run_q_sample}, {"reverse_step", run_reverse_step},
        {"renoising_step", run_renoising_step}, {"plain_step", run_plain_step}, {"step_log_prob", run_step_log_prob},
        {"prepass_step", run_prepass_step}, {"kinds_step", run_kinds_step}, {"q_posterior", run_q_posterior},
        {"reparameterize", run_reparameterize},
        {"noise_mse", run_noise_mse}, {"gaussian_kl", run_gaussian_kl}, {"discretized_gaussian_nll", run_nll},
        {"vlb_terms", run_vlb_terms}, {"group_norm_silu", run_group_norm_silu}};
    int different = 0;
    for (const auto& op : ops)
        for (int64_t type = 0; type < 4; ++type) {
            const uint64_t first = op.run(FD_BASELINE, type);
            for (int64_t level = 0; level <= fd_cpu_level(); ++level) {
                const uint64_t h = op.run(level, type);
                if (h == 0) std::printf("%s %s failed: %s\n", op.name, levels[level], fd_last_error());
                different |= h != first || h == 0;
                std::printf("%s %s %s %016llx\n", op.name, types[type], levels[level], (unsigned long long)h);
            }
        }
    std::printf(different ? "levels differ\n" : "levels agree\n");
    std::fflush(stdout);
    return different;
}
