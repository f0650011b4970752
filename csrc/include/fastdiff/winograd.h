// Winograd's 3x3 convolution F(4x4, 3x3) in float32, private to fastdiff.acceleration.
//
// It is not one of the library's ops: the caller transforms and packs the weights, results have a
// tolerance instead of fixed bits, and there is no GPU version. So it is separate from ops.h and has its
// own version.
#ifndef FASTDIFF_WINOGRAD_H
#define FASTDIFF_WINOGRAD_H

#include <stdint.h>

#include "fastdiff/ops.h"

#define FD_WINOGRAD_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

enum { FD_WINOGRAD_POSITIONS = 36, FD_WINOGRAD_PANEL = 16 };  // positions of a 6x6 tile; adjacent output channels

// float32, channels innermost, stride 1, padding 1: out = (conv(image, weight) + bias + add + residual) * scale
typedef struct {
    int64_t level;    // as in fd_launch
    int64_t threads;
    int64_t batch, height, width, channels, out_channels;
    const float* image;  // [batch, height, width, channels] with these strides in elements
    int64_t sample_stride, row_stride, pixel_stride;
    float* out;  // [batch, height, width, out_channels]
    int64_t out_sample_stride, out_row_stride, out_pixel_stride;
    const float* weight;  // [36, panels, channels, 16]: G w G' of every pair of channels, zeros after the last
    const float* bias;    // [out_channels] or null
    const float* add;     // [batch, out_channels] with this stride, or null
    int64_t add_stride;
    const float* residual;  // like out, or null
    int64_t residual_sample_stride, residual_row_stride, residual_pixel_stride;
    double scale;
    float* workspace;  // of fd_winograd_workspace(channels, out_channels, block) elements
    int64_t block;     // tiles at a time; no value depends on it
} fd_winograd_args;

FD_EXPORT int64_t fd_winograd_version(void);
FD_EXPORT int64_t fd_winograd_workspace(int64_t channels, int64_t out_channels, int64_t block);
FD_EXPORT int fd_winograd(const fd_winograd_args* args);
// Adds to `out`, [36, panels, channels, 16], the gradient by the transformed weight; `residual` is the gradient
// by the result. No other operand is read. Its rounding depends on `block`.
FD_EXPORT int fd_winograd_weight(const fd_winograd_args* args);

#ifdef __cplusplus
}
#endif
#endif
