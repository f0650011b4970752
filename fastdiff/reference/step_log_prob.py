"""log N(x_s; mean, std² I) of the Gaussian that a row of a plan draws from."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .reverse_step import COLUMNS, reverse_step


def step_log_prob(
    x_t: NDArray,
    model_output: NDArray | None,
    x_s: NDArray,
    table: NDArray[np.float64],
    row: ArrayLike,
    *,
    slots: NDArray | None = None,
    guidance: ArrayLike | None = None,
    gradient: NDArray | None = None,
    reduce: str = "sum",
) -> NDArray[np.float64]:
    """Returns the log-density [B] in nats of x_s for row[b] of every sample b, or its mean.

    The mean of the Gaussian is the next x of the row without its noise; the density is float64.
    """
    compute = np.float64 if x_t.dtype == np.float64 else np.float32
    quiet = table.copy()
    quiet[:, [i for i, name in enumerate(COLUMNS) if name.endswith(".z")]] = 0.0
    step = reverse_step(
        x_t.astype(compute),
        model_output,
        quiet,
        row,
        slots=slots,
        guidance=guidance,
        gradient=gradient,
    )
    rows = np.broadcast_to(np.asarray(row), (len(x_t),))
    result = np.empty(len(x_t))
    for b, r in enumerate(rows):
        c = dict(zip(COLUMNS, table[r].astype(compute).astype(np.float64), strict=True))
        log_std = np.full(x_t[b].shape, math.log(abs(c["x.z"])))
        if c["noise_mode"] == 1:
            assert model_output is not None
            v = model_output[b, x_t.shape[1] :].astype(compute).astype(np.float64)
            lo, hi = c["logvar_lo"], c["logvar_hi"]
            log_std = log_std + 0.5 * (lo + (hi - lo) * (v + 1) / 2)
        y = (x_s[b].astype(compute).astype(np.float64) - step.x_s[b]) * np.exp(-log_std)
        terms = -0.5 * y * y - log_std - 0.5 * math.log(2 * math.pi)
        result[b] = terms.sum() / (max(terms.size, 1) if reduce == "mean" else 1)
    return result
