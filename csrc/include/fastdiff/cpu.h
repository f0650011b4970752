// The C ABI of libfastdiff_cpu: the fused ops of kernels/README.md behind plain structs.
//
// Every op takes one struct of 64-bit fields, so that a caller packs it in one go (fastdiff/native.py uses struct.pack)
// and passes a single pointer. Arrays are dense in C order. Absent arrays are null. Everything is checked before the
// first write: a status other than FD_OK means that no output was touched, and fd_last_error() says why in one sentence.
// The library keeps no state besides that text (per thread) and the launch counters.
#ifndef FASTDIFF_CPU_H
#define FASTDIFF_CPU_H

#include <stdint.h>

#define FD_ABI_VERSION 1
#define FD_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { FD_OK = 0, FD_VALUE_ERROR = 1, FD_INDEX_ERROR = 2 };
enum { FD_FLOAT32 = 0, FD_FLOAT64 = 1, FD_FLOAT16 = 2, FD_BFLOAT16 = 3 };
enum { FD_RANDN = 0, FD_Q_SAMPLE = 1, FD_REVERSE_STEP = 2, FD_OPS = 3 };
enum { FD_BEST = -1, FD_BASELINE = 0, FD_AVX2 = 1, FD_AVX512 = 2, FD_LEVEL_COUNT = 3 };

// Section 1: which numbers to draw. Fields shared by every op that draws noise.
typedef struct {
    uint64_t seed;
    const int64_t* seeds;       // [batch] or null; overrides seed
    const int64_t* sample_ids;  // [batch] or null: 0 … batch - 1
    uint64_t step;              // reverse_step takes the row's noise_index instead
    uint64_t stream;
} fd_noise;

typedef struct {
    int64_t batch;
    int64_t elements;  // in a sample, at most 2^34
    int64_t level;     // FD_BASELINE … fd_cpu_level(), or FD_BEST: the latter
    int64_t threads;   // at most this many
} fd_launch;

typedef struct {
    fd_launch launch;
    fd_noise draw;
    void* out;
    int64_t out_type;
} fd_randn_args;

typedef struct {
    fd_launch launch;
    fd_noise draw;
    void* out;
    int64_t out_type;
    const void* x0;
    int64_t x0_type;
    const int64_t* t;     // [batch] into alpha and sigma, or null: they are [batch]
    const double* alpha;  // [times] or [batch]
    const double* sigma;
    int64_t times;
    const void* noise;  // like x0, or null: drawn
    int64_t noise_type;
} fd_q_sample_args;

typedef struct {
    fd_launch launch;
    fd_noise draw;
    int64_t seeded;  // 0: draw is absent
    void* x_s;
    int64_t x_s_type;
    const void* x_t;
    int64_t x_type;            // float64 makes float64 the compute type, everything else float32
    const void* model_output;  // [batch, output_elements], with guidance [2 * batch, output_elements]
    int64_t output_type;
    int64_t output_elements;  // elements, or twice as many with learned variance
    const double* table;      // [rows, 54]
    int64_t rows;
    const int64_t* row;  // [batch]
    const void* slots;   // compute type [slot_count, batch, elements]
    int64_t slot_count;
    void* slots_out;
    int64_t slots_out_count;
    const void* noise;
    int64_t noise_type;
    const void* guidance;  // compute type [batch]
    const void* gradient;
    int64_t gradient_type;
    void* x0_out;
    int64_t x0_type;
    void* input_out;  // [input_copies * batch, elements]
    int64_t input_type;
    int64_t input_copies;
    int64_t* row_out;  // [batch]
} fd_reverse_step_args;

FD_EXPORT int fd_randn(const fd_randn_args* args);
FD_EXPORT int fd_q_sample(const fd_q_sample_args* args);
FD_EXPORT int fd_reverse_step(const fd_reverse_step_args* args);

FD_EXPORT int64_t fd_abi_version(void);
FD_EXPORT const char* fd_schema(void);      // the table's column names, separated by commas
FD_EXPORT const char* fd_levels(void);      // the levels compiled in, separated by commas
FD_EXPORT int64_t fd_cpu_level(void);       // the best of them that this processor runs
FD_EXPORT int64_t fd_openmp(void);          // 1: threaded
FD_EXPORT uint64_t fd_launches(int64_t op);  // kernels launched since the library was loaded
FD_EXPORT const char* fd_last_error(void);  // of this thread

#ifdef __cplusplus
}
#endif
#endif
