// The digest of a weight's memory, private to fastdiff.acceleration: what is made from a weight is kept
// until its digest changes.
//
// The memory is a row of 64-bit words w = (low, high) of 32 bits each, zero after its end; word n = 16 b + j
// is the b-th of lane j. With the keys k_j(b) = k_j(0) + b s_j,
//
//     digest[j]      = sum over b of (low + k_low mod 2^32)(high + k_high mod 2^32)    (mod 2^64)
//     digest[16 + j] = sum over b of w                                                 (mod 2^64)
//
// A change of one word always changes the digest. Other changes, of signs and places for instance, can leave
// it by a coincidence in every lane that they touch: the products are the hash NH (Black et al. 1999), which
// for random keys gives two messages one value with a probability of at most 2^-32.
#ifndef FASTDIFF_CONTENTS_H
#define FASTDIFF_CONTENTS_H

#include <stdint.h>

#include "fastdiff/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FD_CONTENTS_LANES = 16 };

// Memory of `count` weights. No value depends on level and threads.
typedef struct {
    int64_t level;  // as in fd_launch
    int64_t threads;
    int64_t count;
    const void* const* data;  // [count]
    const int64_t* bytes;     // [count]
} fd_contents_args;

// digests: [count, 2 FD_CONTENTS_LANES]
FD_EXPORT int fd_contents(const fd_contents_args* args, uint64_t* digests);
// changed: the number of weights whose digest is not the known one
FD_EXPORT int fd_contents_changed(const fd_contents_args* args, const uint64_t* known, int64_t* changed);

#ifdef __cplusplus
}
#endif
#endif
