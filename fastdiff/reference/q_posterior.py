"""The forward process posterior q(x_{t-1} | x_t, x0) in NumPy (kernels/README.md section 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def q_posterior(
    x0: NDArray, x_t: NDArray, t: ArrayLike, alphas_cumprod: ArrayLike
) -> tuple[NDArray, NDArray, NDArray]:
    """Computes (mean [B, …], variance [B], log-variance [B]) of q(x_{t-1} | x_t, x0).

    (Ho et al. 2020, eq. 6 and 7.) t int [B] into alphas_cumprod float64 [T]. At t = 0 the variance
    is 0 and the log-variance that of t = 1.
    """
    compute = np.float64 if x0.dtype == np.float64 else np.float32
    cumulative = np.asarray(alphas_cumprod, np.float64)
    index = np.asarray(t)

    def parts(index: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        a = cumulative[index]
        p = np.where(index > 0, cumulative[np.maximum(index - 1, 0)], 1.0)
        alpha = a / p
        beta = 1.0 - alpha
        left = (1.0 - p) / (1.0 - a)
        return np.sqrt(p) * (beta / (1.0 - a)), np.sqrt(alpha) * left, beta * left

    on_x0, on_x, variance = parts(index)
    # T = 1 has no t = 1: the log of its beta
    log_variance = (
        np.log(parts(np.maximum(index, 1))[2])
        if len(cumulative) > 1
        else np.log(1.0 - cumulative[index])
    )
    shape = (-1,) + (1,) * (x0.ndim - 1)
    mean = on_x0.astype(compute).reshape(shape) * x0.astype(compute)
    mean = mean + on_x.astype(compute).reshape(shape) * x_t.astype(compute)
    return mean.astype(x0.dtype), variance.astype(compute), log_variance.astype(compute)
