"""A PID controller of step sizes, one for every sample.

The error e of a step, in units of the tolerance, asks for a step f times as long,
f = e_n^-b1 · e_(n-1)^-b2 · e_(n-2)^-b3, b = (P + I + D, -(P + 2D), D)/order (Söderlind 2003; Hairer
& Wanner, Solving ODEs II, section IV.2). The change is bounded in one of two ways. Soft bound: 1 +
atan(f - 1), as in the adaptive DPM-Solver of Lu et al. 2022a, appendix C. Limits: safety·f clipped
to two numbers, no growth right after a refused step, and a step is taken where e < 1 (Hairer,
Nørsett & Wanner, Solving ODEs I, section II.4). All numbers are float64 on the host.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_TINY = 1e-8  # keeps an error of zero from asking for an infinite step


class StepSize:
    """Step sizes h [B] and the past errors that change them.

    Args:
        h: the first step, of all samples or [B].
        batch: B.
        order: the order of the error estimate.
        pcoeff, icoeff, dcoeff: the controller's weights P, I and D; (0, 1, 0) is the usual
            controller.
        accept_safety: with the soft bound, a step is taken if it would not have to shrink below
            this share.
        limits: (least, largest) change of a step, instead of the soft bound.
        safety: with limits, the factor of f.
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
        self._before: tuple[Array, Array] | None = None  # 1/error of the last two steps taken
        self.refused = np.zeros(batch, dtype=bool)  # in the last try

    def propose(self, error: Array, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the active samples' steps are taken, bool [B]; changes their h for the next try.

        Args:
            error: [B] errors of the tried steps, in units of the tolerance.
            active: bool [B]; other samples keep their h.
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
        """Keeps the state of these samples only."""
        self.h, self.refused = self.h[rows], self.refused[rows]
        if self._before is not None:
            self._before = self._before[0][rows], self._before[1][rows]
