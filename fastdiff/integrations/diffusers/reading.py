"""How drop-ins read a network's output where diffusers' numbers are not those of the formula."""

from __future__ import annotations

import math
from typing import Any

from ...prediction import Coefficients, Parametrization, normalize
from ...schedule import Time

_LARGE = 2.0**100  # for 1/alpha at pure noise, below the overflow of float32
_LEAST_RATIO = 1e-30  # the quantile at it is the least magnitude, as that at 0
_NAN = math.nan


class Reading(Parametrization):
    """Another parametrization, as diffusers' classes use it.

    Quirks:
    - A largest threshold `bound` below 1 is diffusers' threshold: x0 is clipped at it and divided
      by it, which is the same as x0/bound clipped at 1.
    - At pure noise (alpha = 0) epsilon's x0 = (x - sigma eps)/alpha is infinite, and a clip leaves
      its sign.
    - Where an output has no meaning the coefficients are NaN, and the step that needs them is
      refused; other steps of the grid are not.
    """

    inner: Parametrization
    bound: float  # 1 for none below it
    clips: bool  # whether x0 is clipped or thresholded

    def at(self, alpha: float, sigma: float) -> Coefficients:
        try:
            c = self.inner.at(alpha, sigma)
        except (ValueError, ZeroDivisionError):
            if not (self.clips and alpha == 0 and normalize(self.prediction_type) == "epsilon"):
                return Coefficients(_NAN, _NAN, _NAN, _NAN, _NAN)
            c = Coefficients(1.0, _LARGE, -_LARGE * sigma, 0.0, 1.0)
        return c._replace(x0_x=c.x0_x / self.bound, x0_out=c.x0_out / self.bound)


def reading(
    where: str, inner: Parametrization, limits: dict[str, Any]
) -> tuple[Reading, dict[str, Any]]:
    """(parametrization, arguments of `Trace` that clip) for diffusers' limits of x0.

    Raises ValueError for a largest threshold that is not positive.
    """
    result = Reading(*inner)
    result.inner, result.bound, result.clips = inner, 1.0, bool(limits)
    if "dynamic_threshold" not in limits:
        return result, limits
    bound, ratio = limits["clip_range"], limits["dynamic_threshold"]
    if not bound > 0:
        raise ValueError(f"fastdiff.{where}: expected sample_max_value > 0, got {bound!r}.")
    if bound < 1:
        result.bound = float(bound)
        return result, {"clip_range": 1.0}
    return result, {**limits, "dynamic_threshold": ratio or _LEAST_RATIO}


def nowhere(t: float) -> Time:
    """The point of a timestep that the tables do not have; a step from or to it is refused."""
    return Time(float(t), _NAN, _NAN, _NAN)
