"""randn: out[b, e] = normal(seed[b], id[b], stream, step, e), kernels/README.md section 2."""

import triton
import triton.language as tl

from .noise import normals, stream_identity
from .tiling import at, samples, share, tile


@triton.jit(
    do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch", "each"],
    do_not_specialize_on_alignment=["seeds", "sample_ids"],
)
def randn_kernel(
    out,
    seeds,
    sample_ids,
    seed_lo,
    seed_hi,
    step,
    stream_index,
    batch,
    size,
    each,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    b, live = samples(batch, S)
    k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        z = normals(first, k0, k1, sample_id, step, stream_index, E, FAST)
        tl.store(at(out, b, size, first, e), z.to(out.dtype.element_ty), mask=inside)
        chunk += 1
