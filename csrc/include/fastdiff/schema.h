// The columns of a plan's table, schema version 4 (kernels/README.md section 4).
#pragma once

namespace fastdiff {

enum Column {
    NETWORK, TIME, INPUT_SCALE, GUIDANCE_WEIGHT, GUIDANCE_RESCALE, OUT_GRAD, X0_X, X0_OUT, CLIP_MODE, CLIP_BOUND,
    CLIP_RATIO, NOISE_INDEX, NOISE_MODE, LOGVAR_LO, LOGVAR_HI, NEXT, FIRST_COEFFICIENT
};
enum Operand { X, X0, OUT, S1, S2, S3, S4, Z, OPERANDS };

constexpr int SLOTS = 4;
constexpr int OUTPUTS = 1 + SLOTS;  // the next x, then the slots
enum FurtherColumn {
    OUT_UNCOND = FIRST_COEFFICIENT + OUTPUTS * OPERANDS, GUIDANCE_KIND, GUIDANCE_PARALLEL, GUIDANCE_X, GUIDANCE_BOUND,
    GUIDANCE_MOMENTUM, COLUMNS
};
// The values of GUIDANCE_KIND. From KEEPING on they are the two projected kinds again, whose difference becomes slot 4.
enum GuidanceKind { LINEAR, ZERO_STAR, PROJECTED, PROJECTED_FROM_UNCOND, KEEPING };

}  // namespace fastdiff
