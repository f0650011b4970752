"""noise_mse, the loss against regenerated noise (Ho et al. 2020, eq. 14), kernels/README.md section
8.

    loss = w * (sum of (prediction - eps)^2 / n)
    g_prediction = ((2*g*w)/n) * (prediction - eps)

w is weight[b] or 1; eps is regenerated in the forward and the backward pass and never stored.
"""

import triton
import triton.language as tl

from .noise import normals, stream_identity
from .sums import mean_of, row_sum, store_sum
from .tiling import at, samples, share, tile


@triton.jit(
    do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch", "each"],
    do_not_specialize_on_alignment=["loss", "workspace", "weight", "seeds", "sample_ids"],
)
def noise_mse_kernel(
    loss,
    workspace,
    prediction,
    weight,
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
    COMPUTE: tl.constexpr = tl.float64 if loss.dtype.element_ty == tl.float64 else tl.float32
    b, live = samples(batch, S)
    k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        p = tl.load(at(prediction, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        d = p - normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
        total = row_sum(d * d, inside, S, E)
        store_sum(loss, workspace, weight, total, b, chunk, live, size, True)
        chunk += 1


@triton.jit(
    do_not_specialize=["seed_lo", "seed_hi", "step", "stream_index", "batch", "each"],
    do_not_specialize_on_alignment=["grad", "weight", "seeds", "sample_ids"],
)
def noise_mse_backward_kernel(
    g_prediction,
    grad,
    prediction,
    weight,
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
    c = 2.0 * tl.load(grad + b, mask=live, other=0.0).to(tl.float64)
    if weight is not None:
        c = c * tl.load(weight + b, mask=live, other=0.0).to(tl.float64)
    scale = mean_of(c, None, b, live, size).to(COMPUTE)
    k0, k1, sample_id = stream_identity(seeds, sample_ids, seed_lo, seed_hi, b, live)
    chunk, end = share(size, each, E)
    while chunk < end:
        first, e, inside = tile(chunk, size, live, E)
        p = tl.load(at(prediction, b, size, first, e), mask=inside, other=0.0).to(COMPUTE)
        d = p - normals(first, k0, k1, sample_id, step, stream_index, E, FAST).to(COMPUTE)
        g = (scale * d).to(g_prediction.dtype.element_ty)
        tl.store(at(g_prediction, b, size, first, e), g, mask=inside)
        chunk += 1
