// The exported functions: check the arguments, pick the level, launch, count.
#include "fastdiff/ops.h"

#include <math.h>

#include <atomic>

#include "checks.h"
#include "kernels.h"
#include "levels.h"

#if defined(FD_HAVE_AVX2)
#include <cpuid.h>
#endif

namespace {

std::atomic<uint64_t> launches[FD_OPS];

template <class Args>
struct Kernels {
    int op;
    void (*level[FD_LEVEL_COUNT])(const Args&);
};

constexpr Kernels<fd_randn_args> RANDN = {FD_RANDN, FD_EVERY_LEVEL(randn)};
constexpr Kernels<fd_q_sample_args> Q_SAMPLE = {FD_Q_SAMPLE, FD_EVERY_LEVEL(q_sample)};
constexpr Kernels<fd_reverse_step_args> REVERSE_STEP = {FD_REVERSE_STEP, FD_EVERY_LEVEL(reverse_step)};
constexpr Kernels<fd_reverse_step_args> GUIDANCE = {FD_REVERSE_STEP_GUIDANCE, FD_EVERY_LEVEL(reverse_step_guidance)};
constexpr Kernels<fd_reverse_step_args> RESCALE = {FD_REVERSE_STEP_RESCALE, FD_EVERY_LEVEL(reverse_step_rescale)};
constexpr Kernels<fd_reverse_step_args> THRESHOLD = {FD_REVERSE_STEP_THRESHOLD, FD_EVERY_LEVEL(reverse_step_threshold)};
constexpr Kernels<fd_step_log_prob_args> STEP_LOG_PROB = {FD_STEP_LOG_PROB, FD_EVERY_LEVEL(step_log_prob)};
constexpr Kernels<fd_q_posterior_args> Q_POSTERIOR = {FD_Q_POSTERIOR, FD_EVERY_LEVEL(q_posterior)};
constexpr Kernels<fd_reparameterize_args> REPARAMETERIZE = {FD_REPARAMETERIZE, FD_EVERY_LEVEL(reparameterize)};
constexpr Kernels<fd_noise_mse_args> NOISE_MSE = {FD_NOISE_MSE, FD_EVERY_LEVEL(noise_mse)};
constexpr Kernels<fd_gaussian_kl_args> GAUSSIAN_KL = {FD_GAUSSIAN_KL, FD_EVERY_LEVEL(gaussian_kl)};
constexpr Kernels<fd_discretized_gaussian_nll_args> NLL = {FD_DISCRETIZED_GAUSSIAN_NLL,
                                                           FD_EVERY_LEVEL(discretized_gaussian_nll)};
constexpr Kernels<fd_vlb_terms_args> VLB_TERMS = {FD_VLB_TERMS, FD_EVERY_LEVEL(vlb_terms)};
constexpr Kernels<fd_group_norm_silu_args> GROUP_NORM_SILU = {FD_GROUP_NORM_SILU, FD_EVERY_LEVEL(group_norm_silu)};

int64_t best_level() {
#if defined(FD_HAVE_AVX2)
    unsigned a, b, c, d;
    const bool half = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    __builtin_cpu_init();
    if (!half || !__builtin_cpu_supports("avx2")) return FD_BASELINE;
#if defined(FD_HAVE_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return FD_AVX512;
#endif
    return FD_AVX2;
#else
    return FD_BASELINE;
#endif
}

const int64_t BEST_LEVEL = best_level();  // determined once: cpuid is slow in a virtual machine

// For empty samples, a sum is 0 and a posterior still has a variance; the other ops write nothing.
enum Empty { SKIP, RUN };

template <class Args>
const fd_launch& launch_of(const Args& args) { return args.launch; }
const fd_launch& launch_of(const fd_step_log_prob_args& args) { return args.step.launch; }

// Starts a kernel whose arguments are checked.
template <class Args>
int start(const Kernels<Args>& kernels, const Args& args, Empty empty = SKIP) {
    const fd_launch& l = launch_of(args);
    const int64_t level = l.level == FD_BEST ? BEST_LEVEL : l.level;
    if (level < 0 || level > BEST_LEVEL)
        return fastdiff::fail(FD_VALUE_ERROR, "expected a CPU level in [0, %lld], got %lld.", (long long)BEST_LEVEL,
                              (long long)level);
    if (l.batch == 0 || (l.elements == 0 && empty == SKIP)) return FD_OK;
    kernels.level[level](args);
    launches[kernels.op].fetch_add(1, std::memory_order_relaxed);
    return FD_OK;
}

template <class Args>
int launch(const Kernels<Args>& kernels, const Args& args, Empty empty = SKIP) {
    if (int status = fastdiff::check(args)) return status;
    return start(kernels, args, empty);
}

// What rows need of whole samples first.
int start_prepasses(const fd_reverse_step_args& args) {
    int status = FD_OK;
    const bool guided = args.guidance && args.model_output.data;
    if (args.terms && guided) status = start(GUIDANCE, args);
    if (status == FD_OK && args.rescale && guided) status = start(RESCALE, args);
    if (status == FD_OK && args.threshold) status = start(THRESHOLD, args);
    return status;
}

// Writes the time t of the row that a sample executes next; NaN where there is none.
void write_time(const fd_reverse_step_args& a, int64_t b, double t) {
    for (int64_t i = b; i < a.time_copies * a.launch.batch; i += a.launch.batch)
        if (a.time_out.type == FD_INT64)
            ((int64_t*)a.time_out.data)[i] = t == t ? (int64_t)rint(t) : 0;
        else
            ((float*)a.time_out.data)[i] = (float)t;
}

// Moves every sample to its next row.
void follow(const fd_reverse_step_args& a) {
    for (int64_t b = 0; b < a.launch.batch; ++b) {
        const double next = a.table[a.row[b] * fastdiff::COLUMNS + fastdiff::NEXT];
        // empty samples are moved without a check of their rows
        const bool inside = next >= 0 && next < (double)a.rows;
        if (a.time_out.data)
            write_time(a, b, inside ? a.table[(int64_t)next * fastdiff::COLUMNS + fastdiff::TIME] : NAN);
        if (a.row_out) a.row_out[b] = (int64_t)next;
    }
}

}  // namespace

int fd_randn(const fd_randn_args* args) { return launch(RANDN, *args); }
int fd_q_sample(const fd_q_sample_args* args) { return launch(Q_SAMPLE, *args); }
int fd_q_posterior(const fd_q_posterior_args* args) { return launch(Q_POSTERIOR, *args, RUN); }
int fd_reparameterize(const fd_reparameterize_args* args) { return launch(REPARAMETERIZE, *args); }
int fd_noise_mse(const fd_noise_mse_args* args) { return launch(NOISE_MSE, *args, RUN); }
int fd_gaussian_kl(const fd_gaussian_kl_args* args) { return launch(GAUSSIAN_KL, *args, RUN); }
int fd_discretized_gaussian_nll(const fd_discretized_gaussian_nll_args* args) { return launch(NLL, *args, RUN); }
int fd_vlb_terms(const fd_vlb_terms_args* args) { return launch(VLB_TERMS, *args, RUN); }
int fd_group_norm_silu(const fd_group_norm_silu_args* args) { return launch(GROUP_NORM_SILU, *args); }

int fd_reverse_step(const fd_reverse_step_args* args) {
    int status = fastdiff::check(*args);
    if (status == FD_OK) status = start_prepasses(*args);
    if (status == FD_OK) status = start(REVERSE_STEP, *args, args->log_prob ? RUN : SKIP);
    // after every sample is done, since row_out may be row's memory
    if (status == FD_OK && (args->row_out || args->time_out.data)) follow(*args);
    return status;
}

int fd_step_log_prob(const fd_step_log_prob_args* args) {
    int status = fastdiff::check(*args);
    if (status == FD_OK) status = start_prepasses(args->step);
    return status == FD_OK ? start(STEP_LOG_PROB, *args, RUN) : status;
}

int64_t fd_abi_version(void) { return FD_ABI_VERSION; }

const char* fd_schema(void) {
#define FD_OUTPUT(o) "," o ".x," o ".x0," o ".out," o ".s1," o ".s2," o ".s3," o ".s4," o ".z"
    return "network,t,input_scale,guidance_weight,guidance_rescale,out_grad,x0_x,x0_out,clip_mode,clip_bound,clip_ratio,noise_index,noise_mode,"
           "logvar_lo,logvar_hi,next" FD_OUTPUT("x") FD_OUTPUT("s1") FD_OUTPUT("s2") FD_OUTPUT("s3") FD_OUTPUT("s4") ",out_uncond,guidance_kind,guidance_parallel,"
           "guidance_x,guidance_bound,guidance_momentum";
}

const char* fd_levels(void) {
    return "baseline"
#if defined(FD_HAVE_AVX2)
           ",avx2"
#endif
#if defined(FD_HAVE_AVX512)
           ",avx512"
#endif
        ;
}

int64_t fd_cpu_level(void) { return BEST_LEVEL; }

int64_t fd_openmp(void) {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

uint64_t fd_launches(int64_t op) { return op >= 0 && op < FD_OPS ? launches[op].load(std::memory_order_relaxed) : 0; }
const char* fd_last_error(void) { return fastdiff::last_error(); }
