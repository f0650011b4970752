// A kernel at every CPU level of this build, in the order of the levels; null if it is not compiled.
#pragma once

#if defined(FD_HAVE_AVX2)
#define FD_AT_AVX2(kernel) fastdiff::avx2::kernel
#else
#define FD_AT_AVX2(kernel) nullptr
#endif
#if defined(FD_HAVE_AVX512)
#define FD_AT_AVX512(kernel) fastdiff::avx512::kernel
#else
#define FD_AT_AVX512(kernel) nullptr
#endif
#define FD_EVERY_LEVEL(kernel) {fastdiff::baseline::kernel, FD_AT_AVX2(kernel), FD_AT_AVX512(kernel)}
