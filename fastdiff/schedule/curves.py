"""Continuous schedules: a time u in [0, 1], from data to noise, and the point that lies there.

ve      rho = sigma_min (sigma_max/sigma_min)^u                              (Song et al. 2021, eq. 30)
karras  rho = (sigma_min^(1/p) + u (sigma_max^(1/p) - sigma_min^(1/p)))^p    (Karras et al. 2022, eq. 5)
flow    sigma = k u/(1 + (k - 1) u), alpha = 1 - sigma, which is rho = k u/(1 - u)  (Esser et al. 2024, eq. 23)
vp      alpha = e^(-B/2), sigma² = 1 - e^(-B), B = b0 u + (b1 - b0) u²/2           (Song et al. 2021, eq. 29)
sub_vp  the same alpha, sigma = 1 - e^(-B)                                        (ibid., eq. 12 and 29)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Ve:
    """alpha = 1, the noise level even in its logarithm."""

    sigma_min: float
    sigma_max: float

    space: ClassVar[str] = "ve"
    first: ClassVar[float] = (
        0.0  # the time of a table's first point, as a share of the way between its neighbours
    )

    def point(self, u: float) -> tuple[float, float]:
        """(alpha, sigma) at time u."""
        return 1.0, self.sigma_min * (self.sigma_max / self.sigma_min) ** u

    def time(self, rho: float) -> float:
        """u at the noise level sigma/alpha = rho."""
        return math.log(rho / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def network_time(self, rho: float) -> float:
        """What a network is told there, in [0, 1]."""
        return self.time(rho)


@dataclass(frozen=True)
class Karras:
    """alpha = 1, the noise level even in its 1/p-th power."""

    sigma_min: float
    sigma_max: float
    power: float

    space: ClassVar[str] = "ve"
    first: ClassVar[float] = 0.0

    def point(self, u: float) -> tuple[float, float]:
        low, high = (v ** (1.0 / self.power) for v in (self.sigma_min, self.sigma_max))
        return 1.0, (low + u * (high - low)) ** self.power

    def time(self, rho: float) -> float:
        low, high = (v ** (1.0 / self.power) for v in (self.sigma_min, self.sigma_max))
        return (rho ** (1.0 / self.power) - low) / (high - low)

    def network_time(self, rho: float) -> float:
        return self.time(rho)


@dataclass(frozen=True)
class Flow:
    """alpha + sigma = 1; a shift above 1 spends more of the time at high noise. Networks are told
    sigma.
    """

    shift: float

    space: ClassVar[str] = "flow"
    first: ClassVar[float] = 1.0  # u = 0 is clean data, no point of a table

    def point(self, u: float) -> tuple[float, float]:
        total = 1.0 + (self.shift - 1.0) * u
        return (1.0 - u) / total, self.shift * u / total

    def time(self, rho: float) -> float:
        return 1.0 if math.isinf(rho) else rho / (self.shift + rho)

    def network_time(self, rho: float) -> float:
        return 1.0 if math.isinf(rho) else rho / (1.0 + rho)


@dataclass(frozen=True)
class Vp:
    """The integral B of a rate beta that grows linearly from beta_min to beta_max. Networks are
    told u.
    """

    beta_min: float
    beta_max: float

    space: ClassVar[str] = "vp"
    first: ClassVar[float] = 1.0

    def point(self, u: float) -> tuple[float, float]:
        total = self.integral(u)
        return math.exp(-0.5 * total), math.sqrt(-math.expm1(-total))

    def time(self, rho: float) -> float:
        return self.inverse(math.log1p(rho * rho))

    def network_time(self, rho: float) -> float:
        return self.time(rho)

    def integral(self, u: float) -> float:
        """B, the integral of beta from 0 to u."""
        return u * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * u)

    def inverse(self, total: float) -> float:
        """u at which the integral is `total`, by the root that does not cancel."""
        if math.isinf(total):
            return math.inf
        slope = self.beta_max - self.beta_min
        return 2.0 * total / (self.beta_min + math.sqrt(self.beta_min**2 + 2.0 * slope * total))


@dataclass(frozen=True)
class SubVp(Vp):
    """The signal of `Vp` and sigma = 1 - alpha²: less noise at every time."""

    space: ClassVar[str] = "sub_vp"

    def point(self, u: float) -> tuple[float, float]:
        total = self.integral(u)
        return math.exp(-0.5 * total), -math.expm1(-total)

    def time(self, rho: float) -> float:
        return self.inverse(2.0 * math.asinh(0.5 * rho))


Curve = Ve | Karras | Flow | Vp


def flow_shift(
    image_seq_len: float,
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_seq_len: float = 256,
    max_seq_len: float = 4096,
    kind: str = "exponential",
) -> float:
    """The shift of `Schedule.flow` for an image of this many tokens (Esser et al. 2024, section
    5.3.2).

    mu grows linearly from base_shift at base_seq_len to max_shift at max_seq_len; `exponential`
    gives the shift e^mu, sigma = e^mu/(e^mu + 1/u - 1), `linear` mu itself.
    """
    if kind not in ("exponential", "linear"):
        raise ValueError(
            f"fastdiff.flow_shift: expected kind in ['exponential', 'linear'], got {kind!r}."
        )
    if base_seq_len == max_seq_len:
        raise ValueError(
            f"fastdiff.flow_shift: expected base_seq_len other than max_seq_len, got {base_seq_len}"
            " twice."
        )
    mu = base_shift + (image_seq_len - base_seq_len) * (max_shift - base_shift) / (
        max_seq_len - base_seq_len
    )
    return math.exp(mu) if kind == "exponential" else mu
