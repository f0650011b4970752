"""Group normalisation, conditioning and SiLU in NumPy (kernels/README.md section 12)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .elementary import EXP_HIGH, exp


def group_norm_silu(
    x: NDArray,
    groups: int,
    weight: NDArray | None = None,
    bias: NDArray | None = None,
    *,
    eps: float = 1e-5,
    scale: NDArray | None = None,
    shift: NDArray | None = None,
    add: NDArray | None = None,
    silu: bool = True,
) -> NDArray:
    """Computes silu(((u - mean)/sqrt(var + eps)·weight + bias)·(1 + scale) + shift), u = x + add.

    Mean and variance of every group of channels of a sample are computed in float64 (Wu & He 2018,
    eq. 1–4), the rest in the compute type: float64 for float64, else float32.
    """
    compute = np.float64 if x.dtype == np.float64 else np.float32
    batch, channels = x.shape[:2]

    def channelwise(values: NDArray | None, absent: float) -> NDArray:
        """Returns values [B or 1, C, 1, …] in the compute type."""
        values = np.full(channels, absent) if values is None else values
        return values.astype(compute).reshape(-1, channels, *(1,) * (x.ndim - 2))

    u = x.astype(compute)
    u = u if add is None else u + channelwise(add, 0)
    by_group = u.astype(np.float64).reshape(batch, groups, -1)
    mean = by_group.mean(axis=2, keepdims=True)
    variance = ((by_group - mean) ** 2).mean(axis=2)
    width = channels // groups
    means = np.repeat(mean[:, :, 0], width, axis=1).astype(compute)
    with np.errstate(divide="ignore"):
        rstd = np.repeat(1 / np.sqrt(variance + eps), width, axis=1).astype(compute)
    wide = 1 + channelwise(scale, 0)
    gain = (channelwise(rstd, 0) * channelwise(weight, 1)) * wide
    z = (u - channelwise(means, 0)) * gain + (channelwise(bias, 0) * wide + channelwise(shift, 0))
    with np.errstate(over="ignore"):
        y = z / (1 + exp(-z)) if silu else z
    if silu and compute == np.float32:
        y = np.where(z < -EXP_HIGH, np.float32(0), y)
    return y.astype(x.dtype)
