// The kernels of every level, as the dispatcher in api.cpp sees them. Arguments have been checked.
#pragma once

#include "fastdiff/cpu.h"

#define FD_DECLARE(level)                                 \
    namespace fastdiff::level {                           \
    void randn(const fd_randn_args& args);                \
    void q_sample(const fd_q_sample_args& args);          \
    void reverse_step(const fd_reverse_step_args& args);  \
    }

FD_DECLARE(baseline)
FD_DECLARE(avx2)
FD_DECLARE(avx512)

#undef FD_DECLARE
