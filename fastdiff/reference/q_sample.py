"""Forward noising q(x_t | x0) in NumPy (kernels/README.md section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .randn import randn


def q_sample(
    x0: NDArray,
    t: ArrayLike | None,
    alpha: ArrayLike,
    sigma: ArrayLike,
    *,
    noise: NDArray | None = None,
    seed: ArrayLike | None = None,
    sample_ids: ArrayLike | None = None,
    step: int = 0,
    stream: int = 2,
) -> NDArray:
    """Computes x_t = alpha_t x0 + sigma_t eps (Ho et al. 2020, eq. 4).

    x0 [B, …]; t int [B] into alpha, sigma float64 [T], or None with alpha, sigma [B].
    """
    compute = np.float64 if x0.dtype == np.float64 else np.float32
    per_sample = (-1,) + (1,) * (x0.ndim - 1)
    index = slice(None) if t is None else np.asarray(t)
    a = np.asarray(alpha, np.float64)[index].astype(compute).reshape(per_sample)
    s = np.asarray(sigma, np.float64)[index].astype(compute).reshape(per_sample)
    if noise is None:
        assert seed is not None, "either noise or seed"
        noise = randn(x0.shape, seed=seed, sample_ids=sample_ids, step=step, stream=stream)
    return (a * x0.astype(compute) + s * noise.astype(compute)).astype(x0.dtype)
