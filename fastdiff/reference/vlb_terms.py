"""A term of the variational bound in NumPy, in float64 (kernels/README.md section 11)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .discretized_gaussian_nll import bins

VLB_COLUMNS = (
    "x0_x",
    "x0_out",
    "clip_bound",
    "mean_x0",
    "mean_x",
    "logvar_q",
    "logvar_lo",
    "logvar_hi",
    "first",
)


def vlb_terms(
    x0: NDArray, x_t: NDArray, model_output: NDArray, table: NDArray[np.float64], t: ArrayLike
) -> NDArray[np.float64]:
    """Computes the bound's term L_{t-1}, [B] in nats (Ho et al. 2020, eq. 5).

    It is KL(q(x_{t-1}|x_t, x0) || p(x_{t-1}|x_t)), and -log p(x0|x_1) in rows with `first`.

    table: float64 [T, 9], see VLB_COLUMNS; model_output with twice the channels carries the
        variance's half.
    """
    result = np.empty(len(x0))
    for b, row in enumerate(np.asarray(t)):
        c = dict(zip(VLB_COLUMNS, table[row], strict=True))
        x, noisy, out = (v[b].astype(np.float64) for v in (x0, x_t, model_output))
        half = None
        if out.shape != x.shape:
            out, half = np.split(out, 2)
        predicted = np.clip(
            c["x0_x"] * noisy + c["x0_out"] * out, -c["clip_bound"], c["clip_bound"]
        )
        logvar = np.full(x.shape, c["logvar_lo"])
        if half is not None:
            logvar = logvar + (c["logvar_hi"] - c["logvar_lo"]) * (half + 1) / 2
        if c["first"]:
            terms = bins(x, c["mean_x0"] * predicted + c["mean_x"] * noisy, 0.5 * logvar)
        else:
            d = c["logvar_q"] - logvar
            terms = 0.5 * (
                (np.expm1(d) - d) + (c["mean_x0"] * (x - predicted)) ** 2 * np.exp(-logvar)
            )
        result[b] = terms.sum()
    return result
