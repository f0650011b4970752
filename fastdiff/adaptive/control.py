"""A PID controller of step sizes, one for every sample.

The error e of a step, in units of the tolerance, changes the step by 1 + atan(f - 1) with
f = e_n^-b1 · e_(n-1)^-b2 · e_(n-2)^-b3 and b = (P + I + D, -(P + 2D), D)/order (Söderlind 2003; Hairer & Wanner,
Solving ODEs II, section IV.2, as in the adaptive DPM-Solver of Lu et al. 2022a, appendix C). All on the host, in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_TINY = 1e-8  # keeps an error of zero from asking for an infinite step


class StepSize:
    """Step sizes h [B] and the memory of errors that changes them.

    Args:
        h: the first step, of every sample.
        batch: B.
        order: the order of the error estimate.
        pcoeff, icoeff, dcoeff: the controller's weights; the plain one is (0, 1, 0).
        accept_safety: a step is taken if it would not have to shrink below this share.
    """

    def __init__(
        self, h: float, batch: int, *, order: float, pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0,
        accept_safety: float = 0.81,
    ):  # fmt: skip
        self.h = np.full(batch, float(h))
        self.powers = (pcoeff + icoeff + dcoeff) / order, -(pcoeff + 2 * dcoeff) / order, dcoeff / order
        self.accept_safety = accept_safety
        self._before: tuple[Array, Array] | None = None  # 1/error of the two steps taken before

    def propose(self, error: Array, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the active samples' steps are taken; their h is changed for the next try, others stay."""
        inverse = 1.0 / (error + _TINY)
        one, two = self._before or (inverse, inverse)
        b1, b2, b3 = self.powers
        factor = 1.0 + np.arctan(inverse**b1 * one**b2 * two**b3 - 1.0)
        taken = active & (factor >= self.accept_safety)
        self._before = np.where(taken, inverse, one), np.where(taken, one, two)
        self.h = np.where(active, self.h * factor, self.h)
        return taken
