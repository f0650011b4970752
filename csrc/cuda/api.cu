// The library's information about itself, its error texts, and the checks of sizes on the host.
// Indices are on the device and are checked there.
#include "launch.h"

#include <stdarg.h>
#include <stdio.h>

namespace fastdiff::FD_LEVEL {

std::atomic<uint64_t> launches[FD_OPS];

static thread_local char text[512] = "";

int fail(int status, const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    return status;
}

int check(const fd_launch& l) {
    if (l.batch < 0) return fail(FD_VALUE_ERROR, "expected batch >= 0, got %lld.", (long long)l.batch);
    if (l.elements < 0 || l.elements > int64_t(1) << 34)
        return fail(FD_VALUE_ERROR, "expected at most 2^34 elements in a sample, got %lld.", (long long)l.elements);
    return FD_OK;
}

int check(const fd_launch& l, const fd_noise& d) {
    if (d.stream >> 40) return fail(FD_VALUE_ERROR, "expected stream in [0, 2^40), got %llu.", (unsigned long long)d.stream);
    if (d.step >> 32) return fail(FD_VALUE_ERROR, "expected step in [0, 2^32), got %llu.", (unsigned long long)d.step);
    return check(l);
}

}  // namespace fastdiff::FD_LEVEL

using namespace fastdiff::FD_LEVEL;

int64_t fd_abi_version(void) { return FD_ABI_VERSION; }

const char* fd_schema(void) {
#define FD_OUTPUT(o) "," o ".x," o ".x0," o ".out," o ".s1," o ".s2," o ".s3," o ".s4," o ".z"
    return "network,t,input_scale,guidance_weight,guidance_rescale,out_grad,x0_x,x0_out,clip_mode,clip_bound,clip_ratio,noise_index,noise_mode,"
           "logvar_lo,logvar_hi,next" FD_OUTPUT("x") FD_OUTPUT("s1") FD_OUTPUT("s2") FD_OUTPUT("s3") FD_OUTPUT("s4") ",out_uncond,guidance_kind,guidance_parallel,"
           "guidance_x,guidance_bound,guidance_momentum";
}

uint64_t fd_launches(int64_t op) { return op >= 0 && op < FD_OPS ? launches[op].load(std::memory_order_relaxed) : 0; }
const char* fd_last_error(void) { return text; }

#if defined(__CUDACC__)

static constexpr int ARCHS[] = {__CUDA_ARCH_LIST__};  // 800, 900, …, lowest first

const char* fd_cuda_archs(void) {
    static thread_local char list[128];
    int length = 0;
    for (int arch : ARCHS) length += snprintf(list + length, sizeof list - length, "%ssm_%d", length ? "," : "", arch / 10);
    return list;
}

const char* fd_cuda_unusable(void) {
    static thread_local char why[256];
    int count = 0, device = 0, major = 0, minor = 0, driver = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    why[0] = 0;
    if (error == cudaErrorInsufficientDriver) {
        if (cudaDriverGetVersion(&driver) || driver == 0) return "There is no NVIDIA driver.";
        snprintf(why, sizeof why, "The NVIDIA driver is for CUDA %d.%d, and this library needs %d.%d.", driver / 1000,
                 driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
        return why;
    }
    if (error == cudaErrorNoDevice || (!error && count == 0)) return "There is no NVIDIA GPU.";
    if (!error) error = cudaGetDevice(&device);
    if (!error) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (!error) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (error)
        snprintf(why, sizeof why, "CUDA does not start: %s.", cudaGetErrorString(error));
    else if (100 * major + 10 * minor < ARCHS[0])
        snprintf(why, sizeof why, "The GPU has compute capability %d.%d, and this library needs %d.%d.", major, minor,
                 ARCHS[0] / 100, ARCHS[0] % 100 / 10);
    cudaGetLastError();  // clears the error, which the next launch would report
    return why;
}

#else

const char* fd_cuda_archs(void) { return "host"; }
const char* fd_cuda_unusable(void) { return ""; }

#endif
