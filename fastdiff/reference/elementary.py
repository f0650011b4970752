"""exp as the kernels compute it (kernels/README.md section 1.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXP_HIGH = np.float32(float.fromhex("0x1.617d78p+6"))


def exp(x: NDArray) -> NDArray:
    """Returns e^x: NumPy's in float64, the polynomial in float32.

    The polynomial is infinite above 88.37 and zero below -87.34.
    """
    if x.dtype == np.float64:
        return np.exp(x)
    f = np.float32
    high, low = EXP_HIGH, f(float.fromhex("-0x1.5d589ep+6"))
    c = np.where(x > high, high, x)
    c = np.where(c < low, low, c)
    magic = f(12582912)
    k = (c * f(float.fromhex("0x1.715476p+0")) + magic) - magic
    r = (c - k * f(float.fromhex("0x1.62e4p-1"))) - k * f(float.fromhex("0x1.7f7d1cp-20"))
    p = np.full_like(r, f(float.fromhex("0x1.6db414p-10")))
    for h in ("0x1.123b46p-7", "0x1.55545ep-5", "0x1.55549p-3", "0x1.0p-1"):
        p = p * r + f(float.fromhex(h))
    y = f(1) + (r + (r * r) * p)
    with np.errstate(invalid="ignore"):
        y = (y.view(np.int32) + (k.astype(np.int32) << 23)).view(f)
    return np.where(x > high, f(np.inf), np.where(x < low, f(0), y))
