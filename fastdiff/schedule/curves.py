"""Continuous schedules: the point (alpha, sigma) at a time u in [0, 1], from data to noise.

ve      rho = sigma_min (sigma_max/sigma_min)^u                          (Song et al. 2021, eq. 30)
karras  rho = (sigma_min^(1/p) + u (sigma_max^(1/p) - sigma_min^(1/p)))^p
                                                                       (Karras et al. 2022, eq. 5)
flow    sigma = k u/(1 + (k - 1) u), alpha = 1 - sigma                  (Esser et al. 2024, eq. 23)
vp      alpha = e^(-B/2), sigma² = 1 - e^(-B), B = b0 u + (b1 - b0) u²/2
                                                                        (Song et al. 2021, eq. 29)
sub_vp  alpha = e^(-B/2), sigma = 1 - e^(-B)                     (Song et al. 2021, eq. 12 and 29)

rho = sigma/alpha is the noise level. The relation between alpha and sigma is that of the curve's
space (fastdiff.schedule.space); a curve adds the time. Times and noise levels are Python numbers
or torch tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .space import FLOW, SUB_VP, VE, VP, RateSpace, Space, Values, functions, select


class Curve:
    """A continuous schedule: its space, and the noise level as a function of time."""

    space: ClassVar[Space]
    first: ClassVar[float]
    """The time of a table's first point, as a fraction of the distance between two points."""

    def point(self, u: Values) -> tuple[Values, Values]:
        """(alpha, sigma) at time u."""
        raise NotImplementedError

    def time(self, rho: Values) -> Values:
        """The time u at which the noise level sigma/alpha is rho."""
        raise NotImplementedError

    def network_time(self, rho: Values) -> Values:
        """The time in [0, 1] that a network is given at the noise level rho; u, except in flow."""
        return self.time(rho)


@dataclass(frozen=True)
class Ve(Curve):
    """alpha = 1 and sigma spaced evenly in its logarithm."""

    sigma_min: float
    sigma_max: float

    space: ClassVar[Space] = VE
    first: ClassVar[float] = 0.0

    def point(self, u: Values) -> tuple[Values, Values]:
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** u
        return 1.0 / self.space.inverse_alpha(sigma), sigma

    def time(self, rho: Values) -> Values:
        return functions(rho).log(rho / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Karras(Curve):
    """alpha = 1 and sigma spaced evenly in its p-th root, p = `power`."""

    sigma_min: float
    sigma_max: float
    power: float

    space: ClassVar[Space] = VE
    first: ClassVar[float] = 0.0

    def point(self, u: Values) -> tuple[Values, Values]:
        low, high = self._roots()
        sigma = (low + u * (high - low)) ** self.power
        return 1.0 / self.space.inverse_alpha(sigma), sigma

    def time(self, rho: Values) -> Values:
        low, high = self._roots()
        return (rho ** (1.0 / self.power) - low) / (high - low)

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1.0 / self.power), self.sigma_max ** (1.0 / self.power)


@dataclass(frozen=True)
class Flow(Curve):
    """alpha + sigma = 1. A shift above 1 spends more of the time at high noise.

    Networks are given sigma as their time.
    """

    shift: float

    space: ClassVar[Space] = FLOW
    first: ClassVar[float] = 1.0  # u = 0 is clean data, which is no point of a table

    def point(self, u: Values) -> tuple[Values, Values]:
        total = 1.0 + (self.shift - 1.0) * u
        return (1.0 - u) / total, self.shift * u / total

    def time(self, rho: Values) -> Values:
        return _fraction(rho, self.shift)

    def network_time(self, rho: Values) -> Values:
        return _fraction(rho, 1.0)


@dataclass(frozen=True)
class Vp(Curve):
    """The variance-preserving curve with a rate beta that grows linearly with time."""

    beta_min: float
    beta_max: float

    space: ClassVar[RateSpace] = VP
    first: ClassVar[float] = 1.0

    def point(self, u: Values) -> tuple[Values, Values]:
        return self.space.at_integral(self.integral(u))

    def time(self, rho: Values) -> Values:
        return self.inverse(self.space.integral(rho))

    def rate(self, u: Values) -> Values:
        """beta at time u."""
        return self.beta_min + (self.beta_max - self.beta_min) * u

    def integral(self, u: Values) -> Values:
        """B, the integral of beta from 0 to u."""
        return u * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * u)

    def inverse(self, integral: Values) -> Values:
        """The time u at which the integral is B: the root without cancellation."""
        f, slope = functions(integral), self.beta_max - self.beta_min
        root = f.sqrt(self.beta_min**2 + 2.0 * slope * integral)
        return select(f.isinf(integral), math.inf, 2.0 * integral / (self.beta_min + root))


@dataclass(frozen=True)
class SubVp(Vp):
    """The alpha of `Vp` with sigma = 1 - alpha²: less noise at every time."""

    space: ClassVar[RateSpace] = SUB_VP


def _fraction(rho: Values, shift: float) -> Values:
    """rho/(shift + rho), which is 1 at rho = inf."""
    return select(functions(rho).isinf(rho), 1.0, rho / (shift + rho))


def flow_shift(
    image_seq_len: float,
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_seq_len: float = 256,
    max_seq_len: float = 4096,
    kind: str = "exponential",
) -> float:
    """The shift of `Schedule.flow` for an image (Esser et al. 2024, section 5.3.2).

    mu grows linearly with the number of tokens, from base_shift at base_seq_len to max_shift at
    max_seq_len.

    Args:
        image_seq_len: the number of tokens of the image.
        kind: `exponential` returns e^mu, which is sigma = e^mu/(e^mu + 1/u - 1); `linear` returns
            mu itself.

    Raises:
        ValueError: another kind, or equal sequence lengths.
    """
    if kind not in ("exponential", "linear"):
        raise ValueError(
            "fastdiff.schedule.flow_shift: expected kind in ['exponential', 'linear'], got"
            f" {kind!r}."
        )
    if base_seq_len == max_seq_len:
        raise ValueError(
            "fastdiff.schedule.flow_shift: expected base_seq_len other than max_seq_len, got"
            f" {base_seq_len}"
            " twice."
        )
    mu = base_shift + (image_seq_len - base_seq_len) * (max_shift - base_shift) / (
        max_seq_len - base_seq_len
    )
    return math.exp(mu) if kind == "exponential" else mu
