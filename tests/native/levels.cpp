// Runs every op at every CPU level this processor has and prints a digest per (op, type, level): equal digests are
// equal bits. Linked statically it is a whole program, so a level that the machine at hand lacks can be checked in an emulator
// (tests/native/README.md). Exits 1 when two levels differ.
#include <cstdio>
#include <cstring>
#include <vector>

#include "fastdiff/cpu.h"

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

// Values of any type: draws of the library itself at the baseline level, so all levels start from the same bits.
std::vector<unsigned char> values(int64_t batch, int64_t n, int64_t type, uint64_t seed) {
    std::vector<unsigned char> data(size_t(batch * n) * size_of(type));
    fd_randn_args a = {{batch, n, FD_BASELINE, 1}, {seed, nullptr, nullptr, 0, 0}, data.data(), type};
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
                fd_randn_args a = {{5, n, level, 1}, {seed, nullptr, ids, 4294967295u - stream, stream}, out.data(), type};
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
        fd_q_sample_args a = {{3, n, level, 1}, {3, nullptr, nullptr, 5, 2}, out.data(), type, x0.data(), type,
                              t, alpha, sigma, 10, nullptr, 0};
        if (fd_q_sample(&a)) return 0;
        h = digest(h, out.data(), out.size());
    }
    return h;
}

// Random rows that use every column: guidance, gradient, clip, learned variance (float32), slots, next input.
uint64_t run_reverse_step(int64_t level, int64_t type) {
    uint64_t h = SEED;
    state = 88172645463325252ull;
    constexpr int64_t rows = 6, batch = 6, columns = 54;
    double table[rows * columns];
    for (int64_t r = 0; r < rows; ++r) {
        double* row = table + r * columns;
        for (int64_t c = 0; c < columns; ++c) row[c] = uniform() < 0.5 ? 0.0 : 4 * uniform() - 2;
        const double header[14] = {1, 10.0 * r, 0.5 + r, r % 2 ? 1.0 : 0.5, row[4], row[5], row[6],
                                   double(r % 2), 0.7, double(r), double(r % 3 == 1), -4, -1, r + 1 < rows ? r + 1.0 : r};
        std::memcpy(row, header, sizeof header);
    }
    const int64_t index[batch] = {0, 1, 2, 3, 4, 5};
    const float gamma32[batch] = {0, 1, 2.5f, -1, 7.5f, 1};
    const double gamma64[batch] = {0, 1, 2.5, -1, 7.5, 1};
    const bool wide = type == FD_FLOAT64;
    // exp of float64 is the platform's, so learned variance is compared in float32 only
    for (int64_t r = 0; wide && r < rows; ++r) table[r * columns + 10] = 0;
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
        a.x_s = out.data(), a.x_s_type = type, a.x_t = x.data(), a.x_type = type;
        a.model_output = output.data(), a.output_type = type, a.output_elements = 2 * n;
        a.table = table, a.rows = rows, a.row = index;
        a.slots = a.slots_out = slots.data(), a.slot_count = a.slots_out_count = 4;
        a.guidance = wide ? static_cast<const void*>(gamma64) : gamma32;
        a.gradient = gradient.data(), a.gradient_type = type;
        a.x0_out = x0.data(), a.x0_type = compute;
        a.input_out = input.data(), a.input_type = FD_BFLOAT16, a.input_copies = 2, a.row_out = row_out;
        if (fd_reverse_step(&a)) return 0;
        for (const auto* v : {&out, &slots, &x0, &input}) h = digest(h, v->data(), v->size());
        h = digest(h, row_out, sizeof row_out);
    }
    return h;
}

}  // namespace

int main() {
    const char *levels[] = {"baseline", "avx2", "avx512"}, *types[] = {"float32", "float64", "float16", "bfloat16"};
    struct {
        const char* name;
        uint64_t (*run)(int64_t level, int64_t type);
    } const ops[] = {{"randn", run_randn}, {"q_sample", run_q_sample}, {"reverse_step", run_reverse_step}};
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
