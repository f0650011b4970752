"""A PID controller of step sizes, one for every sample.

The error e of a step, in units of the tolerance, asks for the step times
f = e_n^-b1 · e_(n-1)^-b2 · e_(n-2)^-b3, b = (P + I + D, -(P + 2D), D)/order (Söderlind 2003; Hairer
& Wanner, Solving ODEs II, section IV.2). Two ways hold the change in bounds: softly, 1 + atan(f -
1), as in the adaptive DPM-Solver of Lu et
al. 2022a, appendix C, or by limits: safety·f between two numbers, no growth right after a refused
    step, and a step is
taken where e < 1 (Hairer, Nørsett & Wanner, Solving ODEs I, section II.4). All on the host, in
float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_TINY = 1e-8  # keeps an error of zero from asking for an infinite step


class StepSize:
    """Step sizes h [B] and the memory of errors that changes them.

    Args:
        h: the first step, of every sample or [B].
        batch: B.
        order: the order of the error estimate.
        pcoeff, icoeff, dcoeff: the controller's weights; the plain one is (0, 1, 0).
        accept_safety: a step is taken if it would not have to shrink below this share; without
            limits.
        limits: (least, largest) change of a step, instead of the soft bound. safety: the share of f
            that is asked for.
    """

    def __init__(
        self,
        h: float | Array,
        batch: int,
        *,
        order: float,
        pcoeff: float = 0.0,
        icoeff: float = 1.0,
        dcoeff: float = 0.0,
        accept_safety: float = 0.81,
        limits: tuple[float, float] | None = None,
        safety: float = 0.9,
    ):
        self.h = np.array(np.broadcast_to(h, batch), dtype=np.float64)
        self.powers = (
            (pcoeff + icoeff + dcoeff) / order,
            -(pcoeff + 2 * dcoeff) / order,
            dcoeff / order,
        )
        self.accept_safety, self.limits, self.safety = accept_safety, limits, safety
        self._before: tuple[Array, Array] | None = None  # 1/error of the two steps taken before
        self.refused = np.zeros(batch, dtype=bool)  # in the try before

    def propose(self, error: Array, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the active samples' steps are taken; their h is changed for the next try, others
        stay.
        """
        inverse = 1.0 / (error + (_TINY if self.limits is None else np.finfo(np.float64).tiny))
        one, two = self._before or (inverse, inverse)
        b1, b2, b3 = self.powers
        asked = inverse**b1 * one**b2 * two**b3
        if self.limits is None:
            factor = 1.0 + np.arctan(asked - 1.0)
            taken = active & (factor >= self.accept_safety)
        else:
            factor = np.clip(self.safety * asked, *self.limits)
            taken = active & (error < 1.0)
            factor = np.where(taken & self.refused, np.minimum(factor, 1.0), factor)
            self.refused = np.where(active, ~taken, self.refused)
        self._before = np.where(taken, inverse, one), np.where(taken, one, two)
        self.h = np.where(active, self.h * factor, self.h)
        return taken

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Forgets the other samples."""
        self.h, self.refused = self.h[rows], self.refused[rows]
        if self._before is not None:
            self._before = self._before[0][rows], self._before[1][rows]
