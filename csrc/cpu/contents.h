// The part of a digest that is compiled once per level.
#pragma once

#include "fastdiff/contents.h"

namespace fastdiff {

constexpr int64_t CONTENTS_BLOCK = FD_CONTENTS_LANES * 8;  // bytes

struct ContentsKeys {
    uint64_t first[FD_CONTENTS_LANES], step[FD_CONTENTS_LANES];
};

}  // namespace fastdiff

// Adds whole blocks of data to a digest; the keys are those of the first of them.
#define FD_DECLARE(level)                                                                                       \
    namespace fastdiff::level {                                                                                 \
    void contents(const unsigned char* data, int64_t blocks, const ContentsKeys& keys, uint64_t* digest);       \
    }

FD_DECLARE(baseline)
FD_DECLARE(avx2)
FD_DECLARE(avx512)

#undef FD_DECLARE
