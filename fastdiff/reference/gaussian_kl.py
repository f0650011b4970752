"""KL between diagonal Gaussians in NumPy, in float64 (kernels/README.md section 9)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def gaussian_kl(
    mean1: NDArray, logvar1: NDArray, mean2: NDArray | None = None, logvar2: NDArray | None = None
) -> NDArray[np.float64]:
    """Computes KL(N(mean1, e^logvar1) || N(mean2, e^logvar2)), [B] in nats.

    The second Gaussian defaults to N(0, I).

    ½ Σ (e^d - 1 - d + (mean1 - mean2)² e^-logvar2) with d = logvar1 - logvar2 (Kingma & Welling
    2014, appendix B).
    """
    zero = np.zeros((1,) * max(mean1.ndim, logvar1.ndim))
    values = [zero if v is None else v for v in (mean1, logvar1, mean2, logvar2)]
    m1, lv1, m2, lv2 = np.broadcast_arrays(*(v.astype(np.float64) for v in values))
    d = lv1 - lv2
    terms = 0.5 * ((np.expm1(d) - d) + (m1 - m2) ** 2 * np.exp(-lv2))
    return terms.sum(axis=tuple(range(1, terms.ndim)))
