// The two parts of a Winograd convolution that are compiled once per level, and the layout of its
// workspace.
#pragma once

#include "fastdiff/winograd.h"

namespace fastdiff {

struct Winograd {
    const fd_winograd_args& args;
    int64_t first, tiles;  // the current block of tiles

    static int64_t panels(int64_t out_channels) { return (out_channels + FD_WINOGRAD_PANEL - 1) / FD_WINOGRAD_PANEL; }
    // A position's matrix begins an odd number of cache lines after a page; otherwise 36 streams would
    // use the same cache set.
    static int64_t stride(int64_t elements) { return (elements + 1023) / 1024 * 1024 + 16; }

    int64_t across() const { return (args.width + 3) / 4; }
    int64_t down() const { return (args.height + 3) / 4; }
    int64_t width() const { return panels(args.out_channels) * FD_WINOGRAD_PANEL; }  // of a row of the product
    int64_t in_stride() const { return stride(args.block * args.channels); }
    int64_t out_stride() const { return stride(args.block * width()); }
    float* spectrum() const { return args.workspace; }  // [36][block, channels]
    float* product() const { return args.workspace + FD_WINOGRAD_POSITIONS * in_stride(); }  // [36][block, width]
};

}  // namespace fastdiff

#define FD_DECLARE(level)                                                          \
    namespace fastdiff::level {                                                    \
    void winograd_input(const Winograd& w, int64_t begin, int64_t end);            \
    void winograd_product(const Winograd& w, int64_t begin, int64_t end);          \
    void winograd_output(const Winograd& w, int64_t begin, int64_t end);           \
    void winograd_gradient(const Winograd& w, int64_t begin, int64_t end);         \
    void winograd_weight(const Winograd& w, int64_t begin, int64_t end);           \
    }

FD_DECLARE(baseline)
FD_DECLARE(avx2)
FD_DECLARE(avx512)

#undef FD_DECLARE
