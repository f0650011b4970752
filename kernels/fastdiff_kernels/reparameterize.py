"""reparameterize (Kingma & Welling 2014): z = mean + (exp(0.5*logvar) * eps), kernels/README.md
section 6.

The gradients are g_mean = g and g_logvar = (g * eps) * (0.5 * exp(0.5*logvar)), with eps
regenerated.
"""

import triton
import triton.language as tl

from .elementary import exponential
from .noise import normals, stream_identity
from .tiling import at, samples, share, tile


@triton.jit(
    do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch", "each"],
    do_not_specialize_on_alignment=["seeds", "sample_ids"],
)
def reparameterize_kernel(
    z,
    mean,
    logvar,
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
    COMPUTE: tl.constexpr = tl.float64 if mean.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        m = tl.load(at(mean, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        v = tl.load(at(logvar, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        eps = normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
        result = m + exponential(0.5 * v) * eps
        tl.store(at(z, b, size, first, e), result.to(z.dtype.element_ty), mask=inside)
        chunk += 1


@triton.jit(
    do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch", "each"],
    do_not_specialize_on_alignment=["seeds", "sample_ids"],
)
def reparameterize_backward_kernel(
    g_mean,
    g_logvar,
    grad,
    logvar,
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
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    if g_logvar is not None:
        k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        g = tl.load(at(grad, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        if g_mean is not None:
            tl.store(at(g_mean, b, size, first, e), g.to(g_mean.dtype.element_ty), mask=inside)
        if g_logvar is not None:
            v = tl.load(at(logvar, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
            eps = normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
            result = (g * eps) * (0.5 * exponential(0.5 * v))
            tl.store(
                at(g_logvar, b, size, first, e), result.to(g_logvar.dtype.element_ty), mask=inside
            )
        chunk += 1
