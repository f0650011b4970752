"""z = mean + exp(logvar / 2) eps in NumPy (kernels/README.md section 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .elementary import exp
from .randn import randn


def reparameterize(
    mean: NDArray,
    logvar: NDArray,
    *,
    seed: ArrayLike,
    sample_ids: ArrayLike | None = None,
    step: int = 0,
    stream: int = 3,
) -> NDArray:
    """Draws from N(mean, exp(logvar)) (Kingma & Welling 2014, section 2.4)."""
    compute: Any = np.float64 if mean.dtype == np.float64 else np.float32
    noise = randn(mean.shape, seed=seed, sample_ids=sample_ids, step=step, stream=stream).astype(
        compute
    )
    scale = exp(compute(0.5) * logvar.astype(compute))
    return (mean.astype(compute) + scale * noise).astype(mean.dtype)
