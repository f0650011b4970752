// How a kernel is written and run. A kernel is an object with phases:
//
//     struct Body {
//         struct Shared { … };                 // the block's shared memory, plain data
//         enum { PHASES = n, THREADS = t };    // t: threads of a block, at most
//         FD_MEMBER void phase(int k, Block block, int thread, Shared& shared) const;
//     };
//
// On the GPU all threads of a block run phase 0, then 1, and so on, with a barrier between them. A plain
// C++ compiler turns the same sources into a library that runs blocks, phases and threads in loops on
// host memory, so the bodies are tested without a GPU. Launches allocate nothing, wait for no stream
// and keep no state on the device, so they can be captured in a graph.
#pragma once

#include <atomic>

#include "fastdiff/formulas.h"
#include "fastdiff/ops.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define FD_MEMBER __host__ __device__ __forceinline__
#else
#define FD_MEMBER inline __attribute__((always_inline))
#endif

namespace fastdiff::FD_LEVEL {

int fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));
int check(const fd_launch& launch);
int check(const fd_launch& launch, const fd_noise& draw);
extern std::atomic<uint64_t> launches[FD_OPS];

struct Block {
    int64_t x, chunk;  // chunk is made of the axes y and z and may be after the last one
};

struct Grid {
    int64_t x, chunks;
    int threads;
};

struct None {};

#if defined(__CUDACC__)
template <class Body>
__global__ void __launch_bounds__(Body::THREADS) run(const Body body) {
    __shared__ typename Body::Shared shared;
    const Block block = {blockIdx.x, blockIdx.y + (int64_t)blockIdx.z * gridDim.y};
    constexpr int unrolled = Body::PHASES > 8 ? 1 : Body::PHASES;
#pragma unroll unrolled
    for (int k = 0; k < Body::PHASES; ++k) {
        if (k > 0) __syncthreads();
        body.phase(k, block, (int)threadIdx.x, shared);
    }
}
#else
template <class Body>
void run(const Body& body, int64_t x, int64_t chunks, int threads) {
    for (int64_t block = 0; block < x * chunks; ++block) {
        typename Body::Shared shared;
        memset((void*)&shared, 0xFF, sizeof shared);  // NaN, so that reading an unwritten value shows
        for (int k = 0; k < Body::PHASES; ++k)
            for (int i = 0; i < threads; ++i)
                // in alternating order, so that a phase that reads its neighbours' results shows
                body.phase(k, {block % x, block / x}, (block + k) % 2 ? threads - 1 - i : i, shared);
    }
}
#endif

template <class Body>
int launch(int op, [[maybe_unused]] const fd_launch& l, const Grid& grid, const Body& body) {
    const int64_t y = grid.chunks < 65535 ? grid.chunks : 65535, z = (grid.chunks + y - 1) / y;
    if (grid.x > INT32_MAX)
        return fail(FD_VALUE_ERROR, "expected at most %d blocks of samples, got %lld.", INT32_MAX, (long long)grid.x);
#if defined(__CUDACC__)
    run<<<dim3((unsigned)grid.x, (unsigned)y, (unsigned)z), grid.threads, 0, (cudaStream_t)l.stream>>>(body);
    if (cudaError_t error = cudaGetLastError())
        return fail(FD_RUNTIME_ERROR, "the kernel did not start: %s.", cudaGetErrorString(error));
#else
    run(body, grid.x, y * z, grid.threads);
#endif
    launches[op].fetch_add(1, std::memory_order_relaxed);
    return FD_OK;
}

// Writes the op whose index is outside its table to the device's error word.
FD_HD void report(const fd_launch& l, int op) {
    if (l.errors) *l.errors = op + 1;
}

// ---- tiling. A thread owns four consecutive elements of a sample: one counter of Philox, one 16-byte
// access.

struct Tiling {
    enum { THREADS = 256 };
    int64_t batch, elements;
    int shift;    // 2^shift threads work on a sample; fewer than THREADS: several samples share a block
    bool vector;  // every thread's four elements can be moved at once

    bool is_long() const { return 1 << shift == THREADS; }
};

static_assert(FD_CHUNK == 4 * Tiling::THREADS, "a block sums a chunk");

// The elements of one thread.
struct Spot {
    int64_t b, e;  // sample, first element
    int count;     // elements, 0 to 4
    bool live;     // the sample exists
    int lane;      // index of the thread among those of the sample

    FD_MEMBER bool first() const { return live && e == 0; }  // the one that writes the sample's own values
};

static inline Tiling tiling(const fd_launch& l, bool vector) {
    int shift = 0;
    while (1 << shift < Tiling::THREADS && (int64_t)4 << shift < l.elements) ++shift;
    return {l.batch, l.elements, shift, vector};
}

static inline Grid grid(const Tiling& t) {
    const int64_t samples = Tiling::THREADS >> t.shift, chunks = (t.elements + FD_CHUNK - 1) / FD_CHUNK;
    return {(t.batch + samples - 1) / samples, chunks ? chunks : 1, Tiling::THREADS};
}

// LONG: the block has one sample, so its index is the same for all threads.
template <bool LONG>
FD_HD Spot spot(const Tiling& t, Block block, int thread) {
    const int width = LONG ? (int)Tiling::THREADS : 1 << t.shift, lane = thread & (width - 1);
    const int64_t b = LONG ? block.x : block.x * (Tiling::THREADS >> t.shift) + (thread >> t.shift);
    const int64_t e = (block.chunk * width + lane) * 4, left = t.elements - e;
    const bool live = b < t.batch;
    return {b, e, !live || left < 0 ? 0 : left > 4 ? 4 : (int)left, live, lane};
}

// Runs Body<C, LONG, PLAIN>{args, tiling, more…} over all elements. PLAIN: every array is float32, and
// four values are moved at once.
template <template <class, bool, bool> class Body, class Args, class... More>
int over_elements(int op, const Args& a, int64_t type, const Tiling& t, bool plain, More... more) {
    const Grid g = grid(t);
    if (type == FD_FLOAT64)
        return t.is_long() ? launch(op, a.launch, g, Body<double, true, false>{a, t, more...})
                           : launch(op, a.launch, g, Body<double, false, false>{a, t, more...});
    if (!t.is_long()) return launch(op, a.launch, g, Body<float, false, false>{a, t, more...});
    return plain ? launch(op, a.launch, g, Body<float, true, true>{a, t, more...})
                 : launch(op, a.launch, g, Body<float, true, false>{a, t, more...});
}

}  // namespace fastdiff::FD_LEVEL
