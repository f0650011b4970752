"""The loss against regenerated noise in NumPy, in float64 (kernels/README.md section 8)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .randn import randn


def noise_mse(
    prediction: NDArray,
    *,
    seed: ArrayLike,
    sample_ids: ArrayLike | None = None,
    step: int = 0,
    stream: int = 2,
    weight: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Computes w_b mean_e (prediction - eps)² [B] (Ho et al. 2020, eq. 14)."""
    noise = randn(
        prediction.shape,
        seed=seed,
        sample_ids=sample_ids,
        step=step,
        stream=stream,
        dtype=np.float64,
    )
    squares = (prediction.astype(np.float64) - noise) ** 2
    loss = (
        squares.reshape(len(squares), -1).mean(axis=1) if squares.size else np.zeros(len(squares))
    )
    return loss if weight is None else loss * np.asarray(weight, np.float64)
