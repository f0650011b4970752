"""randn: out[b, e] = normal(seed[b], id[b], stream, step, e), kernels/README.md section 2."""

import triton
import triton.language as tl

from .noise import normals, stream_identity
from .tiling import at, tile


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch"])
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
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    b, first, e, live, inside = tile(batch, size, S, E)
    k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    z = normals(first, k0, k1, sample_id, step, stream_index, E, FAST)
    tl.store(at(out, b, size, first, e), z.to(out.dtype.element_ty), mask=inside)
