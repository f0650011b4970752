// The C ABI of libfastdiff_cpu and libfastdiff_cuda: the fused ops of kernels/README.md behind plain structs.
//
// Every op takes a pointer to one struct of 64-bit fields, which a caller can pack in one call
// (fastdiff/backend/abi.py uses struct.pack). Arrays are dense in C order, views have strides; missing
// ones are null. On the CPU everything is checked before the first write: with a status other than FD_OK
// no output has been written, and fd_last_error() gives the reason in one sentence. CUDA checks sizes on
// the host; an index outside its table makes that sample NaN and sets the device's error word. A library
// has no state except that text (per thread) and the launch counters.
#ifndef FASTDIFF_OPS_H
#define FASTDIFF_OPS_H

#include <stdint.h>

#define FD_ABI_VERSION 7
#define FD_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { FD_OK = 0, FD_VALUE_ERROR = 1, FD_INDEX_ERROR = 2, FD_RUNTIME_ERROR = 3 };
enum { FD_FLOAT32 = 0, FD_FLOAT64 = 1, FD_FLOAT16 = 2, FD_BFLOAT16 = 3, FD_INT64 = 4 };
enum { FD_BEST = -1, FD_BASELINE = 0, FD_AVX2 = 1, FD_AVX512 = 2, FD_LEVEL_COUNT = 3 };

// what fd_launches counts; prepasses (of reverse_step, and on GPUs of group_norm_silu) and the second
// pass of a sum are separate kernels
enum {
    FD_RANDN, FD_Q_SAMPLE, FD_REVERSE_STEP, FD_REVERSE_STEP_GUIDANCE, FD_REVERSE_STEP_RESCALE, FD_REVERSE_STEP_THRESHOLD,
    FD_Q_POSTERIOR, FD_REPARAMETERIZE, FD_NOISE_MSE, FD_GAUSSIAN_KL, FD_DISCRETIZED_GAUSSIAN_NLL, FD_VLB_TERMS, FD_SUM_CHUNKS,
    FD_GROUP_NORM_SILU, FD_GROUP_NORM_MOMENTS, FD_GROUP_NORM_STATISTICS, FD_STEP_LOG_PROB, FD_OPS
};

// elements of a chunk, the terms of which are summed together (section 7)
enum { FD_CHUNK = 1024 };
// Sample ids are below it: the upper 8 bits of their word hold the stream.
static const uint64_t FD_IDS = (uint64_t)1 << 56;
// what the prepasses of a sample in several parts pass on, in 64-bit words, and the most parts (section 4)
enum { FD_PART_WORDS = 257, FD_SAMPLE_WORDS = 4, FD_MOST_PARTS = 64 };
// positions of a chunk, the moments of which are computed together (section 12)
enum { FD_POSITIONS = 64 };

typedef struct {
    int64_t batch;
    int64_t elements;  // in a sample, at most 2^34
    int64_t level;     // CPU: FD_BASELINE … fd_cpu_level(), or FD_BEST for fd_cpu_level()
    int64_t threads;   // CPU: at most this many
    void* stream;      // CUDA
    int32_t* errors;   // CUDA: the device's error word; ops write their number of `enum` above + 1
} fd_launch;

// Section 1: which numbers to draw. Fields shared by every op that draws noise.
typedef struct {
    uint64_t seed;
    const int64_t* seeds;       // [batch] or null; overrides seed
    const int64_t* sample_ids;  // [batch] in [0, FD_IDS) or null: 0 … batch - 1
    uint64_t step;              // reverse_step takes the row's noise_index instead
    // the number of the stream in the lower 8 bits; above them, in a window of larger samples, the number of
    // the group of four elements that element 0 is in
    uint64_t stream;
} fd_noise;

typedef struct {
    const void* data;
    int64_t type;
} fd_input;  // [batch, elements]

typedef struct {
    void* data;
    int64_t type;
} fd_output;  // [batch, elements]

typedef struct {
    const void* data;
    int64_t type;
    int64_t sample_stride;   // in elements
    int64_t element_stride;  // 1, or 0: one value for the whole sample
} fd_view;

typedef struct {
    void* data;
    int64_t type;
    int64_t sample_stride, channel_stride, position_stride;  // in elements; one of the latter two is 1
} fd_map;  // [batch, channels, positions]

// The first array of a struct fixes the compute type: float64 for float64, else float32. [batch] outputs, weights and
// incoming gradients of sums, and workspaces, have that type.

typedef struct {
    fd_launch launch;
    fd_noise draw;
    fd_output out;
} fd_randn_args;

typedef struct {
    fd_launch launch;
    fd_noise draw;
    fd_input x0;
    fd_output x_t;
    const int64_t* t;     // [batch] into alpha and sigma, or null: they are [batch]
    const double* alpha;  // [times] or [batch]
    const double* sigma;
    int64_t times;
    fd_input noise;  // or null: drawn
} fd_q_sample_args;

typedef struct {
    fd_launch launch;
    fd_noise draw;
    int64_t seeded;  // 0: draw is absent
    fd_input x_t;
    fd_output x_s;
    fd_input model_output;    // [batch, output_elements], with guidance [2 * batch, output_elements]
    int64_t output_elements;  // elements, or twice as many with learned variance
    const double* table;      // [rows, 62]
    int64_t rows;
    const int64_t* row;  // [batch]
    const void* slots;   // compute type [slot_count, batch, elements]
    int64_t slot_count;
    void* slots_out;
    int64_t slots_out_count;
    fd_input noise;
    const void* guidance;  // compute type [batch]
    fd_input gradient;
    fd_output x0_out;
    fd_output input_out;  // [input_copies * batch, elements]
    int64_t input_copies;
    int64_t* row_out;    // [batch], not row's own memory
    fd_output time_out;  // [time_copies * batch], FD_INT64 or FD_FLOAT32
    int64_t time_copies;
    void* rescale;       // compute type [batch], filled by the prepass; null: no row rescales
    void* threshold;     // likewise, dynamic thresholds
    void* terms;         // likewise, [4, batch]: by which kinds of guidance change the unconditional output
    void* parts;         // CUDA: memory for the prepasses of long samples, or null: a block reads a whole sample
    int64_t part_words;  // its 64-bit words; FD_PART_WORDS for each part of a sample and FD_SAMPLE_WORDS for each sample
    void* log_prob;      // compute type [batch] or null: log N(x_s as stored; mean, std² I), 0 for rows without noise
    void* partials;      // [batch, chunks], the workspace of that sum, null with one chunk
} fd_reverse_step_args;

// Scores `step.x_s`, which is read. No noise is drawn, and only `step.log_prob` is written.
typedef struct {
    fd_reverse_step_args step;
    int64_t mean;  // 1: log_prob is divided by the elements
} fd_step_log_prob_args;

typedef struct {
    fd_launch launch;
    fd_input x0, x_t;
    const int64_t* t;  // [batch]
    const double* alphas_cumprod;
    int64_t times;
    fd_output mean;
    void* variance;  // [batch]
    void* log_variance;
} fd_q_posterior_args;

typedef struct {
    fd_launch launch;
    fd_noise draw;
    fd_input mean, logvar;
    fd_output z;      // forward
    fd_input grad;    // or, where given, the backward pass
    fd_output g_mean, g_logvar;
} fd_reparameterize_args;

typedef struct {
    fd_launch launch;
    fd_noise draw;
    fd_input prediction;
    const void* weight;  // [batch] or null
    void* loss;          // [batch], forward
    void* workspace;     // [batch, chunks], null with one chunk
    const void* grad;    // [batch], or, where given, the backward pass
    fd_output g_prediction;
} fd_noise_mse_args;

typedef struct {
    fd_launch launch;
    int64_t compute;  // FD_FLOAT32 or FD_FLOAT64
    fd_view mean1, logvar1;
    fd_view mean2, logvar2;  // null: N(0, 1)
    void* kl;
    void* workspace;
    const void* grad;
    fd_output g_mean1, g_logvar1, g_mean2, g_logvar2;  // those not null are written
} fd_gaussian_kl_args;

typedef struct {
    fd_launch launch;
    int64_t compute;
    fd_view x0, mean, log_scale;
    void* nll;
    void* workspace;
    const void* grad;
    fd_output g_mean, g_log_scale;
} fd_discretized_gaussian_nll_args;

typedef struct {
    fd_launch launch;
    fd_input x0, x_t, model_output;
    int64_t output_elements;  // elements, or twice as many with learned variance
    const double* table;      // [rows, 9]
    int64_t rows;
    const int64_t* t;  // [batch]
    void* terms;
    void* workspace;
    const void* grad;
    fd_output g_output;  // like model_output
} fd_vlb_terms_args;

typedef struct {
    fd_launch launch;  // elements: channels * positions
    int64_t channels, groups;
    fd_map x;    // read only
    fd_map out;  // stride 1 where x has it
    fd_input weight, bias;      // [channels], or null: 1 and 0
    fd_view scale, shift, add;  // [batch, channels], or null: 0
    double eps;
    int64_t silu;
    void* workspace;    // CUDA: [2, batch, chunks of FD_POSITIONS, channels] of the compute type, filled by the prepass
    void* statistics;   // CUDA: [2, batch, groups] of the compute type, likewise: mean and 1/deviation
} fd_group_norm_silu_args;

FD_EXPORT int fd_randn(const fd_randn_args* args);
FD_EXPORT int fd_q_sample(const fd_q_sample_args* args);
FD_EXPORT int fd_reverse_step(const fd_reverse_step_args* args);
FD_EXPORT int fd_step_log_prob(const fd_step_log_prob_args* args);
FD_EXPORT int fd_q_posterior(const fd_q_posterior_args* args);
FD_EXPORT int fd_reparameterize(const fd_reparameterize_args* args);
FD_EXPORT int fd_noise_mse(const fd_noise_mse_args* args);
FD_EXPORT int fd_gaussian_kl(const fd_gaussian_kl_args* args);
FD_EXPORT int fd_discretized_gaussian_nll(const fd_discretized_gaussian_nll_args* args);
FD_EXPORT int fd_vlb_terms(const fd_vlb_terms_args* args);
FD_EXPORT int fd_group_norm_silu(const fd_group_norm_silu_args* args);

FD_EXPORT int64_t fd_abi_version(void);
FD_EXPORT const char* fd_schema(void);       // the table's column names, separated by commas
FD_EXPORT uint64_t fd_launches(int64_t op);  // kernels launched since the library was loaded
FD_EXPORT const char* fd_last_error(void);   // of this thread

// libfastdiff_cpu only
FD_EXPORT const char* fd_levels(void);  // the levels compiled in, separated by commas
FD_EXPORT int64_t fd_cpu_level(void);   // the best of them that this processor supports
FD_EXPORT int64_t fd_openmp(void);      // 1: threaded

// libfastdiff_cuda only
FD_EXPORT const char* fd_cuda_archs(void);      // the architectures it was compiled for, separated by commas
FD_EXPORT const char* fd_cuda_unusable(void);   // why no kernel can run on this machine, in one sentence; "" if they can

#ifdef __cplusplus
}
#endif
#endif
