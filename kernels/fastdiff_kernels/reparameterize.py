"""reparameterize (Kingma & Welling 2014): z = mean + (exp(0.5*logvar) * eps), kernels/README.md
section 6.

The gradients are g_mean = g and g_logvar = (g * eps) * (0.5 * exp(0.5*logvar)), with eps
regenerated.
"""

import triton
import triton.language as tl

from .elementary import exponential
from .noise import normals, stream_identity
from .tiling import at, tile


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch"])
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
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if mean.dtype.element_ty == tl.float64 else tl.float32
    b, first, e, live, inside = tile(batch, size, S, E)
    m = tl.load(at(mean, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
    scale = exponential(
        0.5 * tl.load(at(logvar, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
    )
    k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    eps = normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
    tl.store(at(z, b, size, first, e), (m + scale * eps).to(z.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch"])
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
    S: tl.constexpr,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    COMPUTE: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    b, first, e, live, inside = tile(batch, size, S, E)
    g = tl.load(at(grad, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
    if g_mean is not None:
        tl.store(at(g_mean, b, size, first, e), g.to(g_mean.dtype.element_ty), mask=inside)
    if g_logvar is not None:
        half = 0.5 * exponential(
            0.5 * tl.load(at(logvar, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        )
        k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
        eps = normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
        tl.store(
            at(g_logvar, b, size, first, e),
            ((g * eps) * half).to(g_logvar.dtype.element_ty),
            mask=inside,
        )
