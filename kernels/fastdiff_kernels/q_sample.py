"""q_sample, forward noising (Ho et al. 2020, eq. 4): x_t = (alpha * x0) + (sigma * noise),
kernels/README.md section 3.

alpha and sigma are read at t[b], or at b without t. A t outside the table is never used as an
address: that sample becomes NaN and the error word is set.
"""

import triton
import triton.language as tl

from .noise import normals, stream_identity
from .tiling import at, samples, share, tile


@triton.jit(
    do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch", "each", "times"],
    do_not_specialize_on_alignment=["t", "alpha", "sigma", "seeds", "sample_ids", "errors"],
)
def q_sample_kernel(
    out,
    x0,
    t,
    alpha,
    sigma,
    noise,
    seeds,
    sample_ids,
    errors,
    seed_lo,
    seed_hi,
    step,
    stream_index,
    batch,
    size,
    each,
    times,
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
    ERROR: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if x0.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    if t is None:
        index = b.to(tl.int64)
        valid = live
    else:
        index = tl.load(t + b, mask=live, other=0)
        valid = live & (index >= 0) & (index < times)
        tl.store(errors + b * 0, ERROR, mask=live & (valid == 0))
    a = tl.load(alpha + index, mask=valid, other=float("nan")).to(COMPUTE)
    s = tl.load(sigma + index, mask=valid, other=float("nan")).to(COMPUTE)
    if noise is None:
        k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        x = tl.load(at(x0, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        if noise is None:
            z = normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
        else:
            z = tl.load(at(noise, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        result = (a * x) + (s * z)
        tl.store(at(out, b, size, first, e), result.to(out.dtype.element_ty), mask=inside)
        chunk += 1
