// The columns of a plan's table, schema version 3 (kernels/README.md section 4).
#pragma once

namespace fastdiff {

enum Column {
    NETWORK, TIME, INPUT_SCALE, GUIDANCE_WEIGHT, GUIDANCE_RESCALE, OUT_GRAD, X0_X, X0_OUT, CLIP_MODE, CLIP_BOUND,
    CLIP_RATIO, NOISE_INDEX, NOISE_MODE, LOGVAR_LO, LOGVAR_HI, NEXT, FIRST_COEFFICIENT
};
enum Operand { X, X0, OUT, S1, S2, S3, S4, Z, OPERANDS };

constexpr int SLOTS = 4;
constexpr int OUTPUTS = 1 + SLOTS;  // the next x, then the slots
enum FurtherColumn { OUT_UNCOND = FIRST_COEFFICIENT + OUTPUTS * OPERANDS, COLUMNS };

}  // namespace fastdiff
