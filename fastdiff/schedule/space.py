"""The geometry of the four spaces: how alpha and sigma relate.

A space is the curve of all points (alpha, sigma) that a schedule can have:

    vp       alpha² + sigma² = 1      variance preserving     (Song et al. 2021, eq. 11)
    ve       alpha = 1                variance exploding      (Song et al. 2021, eq. 9)
    flow     alpha + sigma = 1        flow matching           (Lipman et al. 2023)
    sub_vp   alpha² + sigma = 1       less noise than vp      (Song et al. 2021, eq. 12)

One number selects a point of a space: its log-SNR ln(alpha²/sigma²) (Kingma et al. 2021, eq. 2),
its noise level rho = sigma/alpha, or its angle phi = atan(rho). Clean data (sigma = 0) have
log-SNR +inf and pure noise (alpha = 0) has -inf.

The formulas avoid cancellation, except `diffusion` in flow and sub_vp, a difference that loses
digits for points close to each other near clean data. Each takes a Python number, a NumPy array or
a torch tensor and returns the same kind in the same precision; schedules use float64. In float64,
ve and sub_vp have no points below a log-SNR of about -1,419, where rho overflows.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .points import Time

Values = Any
"""A Python number, a NumPy array or a torch tensor."""


class Space:
    """One of the four spaces. `geometry(name)` returns it."""

    name: ClassVar[str]

    def point(self, log_snr: Values) -> tuple[Values, Values]:
        """(alpha, sigma) at a log-SNR."""
        raise NotImplementedError

    def inverse_alpha(self, rho: Values) -> Values:
        """1/alpha at the noise level rho = sigma/alpha."""
        raise NotImplementedError

    def radius(self, cos: Values, sin: Values) -> Values:
        """sqrt(alpha² + sigma²) at the angle phi, given cos(phi) and sin(phi)."""
        raise NotImplementedError

    def prior_std(self, sigma: float) -> float:
        """The standard deviation of the noise that sampling starts from where sigma_t is `sigma`.

        It is sigma itself, except in `vp`, where it is 1: a variance-preserving state has unit
        variance at all times if the data have. Bounds and likelihoods use the same value, because
        otherwise they would describe another model than the one that is sampled.
        """
        return sigma

    def diffusion(self, t: Time, s: Time) -> float:
        """∫ g² du from s to t, s less noisy, of the SDE dx = f x du + g dw with these marginals.

        f du = d ln alpha and g² du = 2 sigma² d ln(sigma/alpha) (Song et al. 2021, eq. 5 and 29).
        Needs alpha > 0 at t.
        """
        raise NotImplementedError


class _VarianceExploding(Space):
    name = "ve"

    def point(self, log_snr: Values) -> tuple[Values, Values]:
        return _one(log_snr), functions(log_snr).exp(-0.5 * log_snr)

    def inverse_alpha(self, rho: Values) -> Values:
        return _one(rho)

    def radius(self, cos: Values, sin: Values) -> Values:
        return 1.0 / cos

    def diffusion(self, t: Time, s: Time) -> float:
        return t.sigma**2 - s.sigma**2


class _Flow(Space):
    name = "flow"

    def point(self, log_snr: Values) -> tuple[Values, Values]:
        ratio = functions(log_snr).exp(0.5 * _minus_abs(log_snr))  # of the smaller to the larger
        return _ordered(log_snr, 1.0 / (1.0 + ratio), ratio / (1.0 + ratio))

    def inverse_alpha(self, rho: Values) -> Values:
        return 1.0 + rho

    def radius(self, cos: Values, sin: Values) -> Values:
        return 1.0 / (cos + sin)

    def diffusion(self, t: Time, s: Time) -> float:
        return -2.0 * math.log(t.alpha / s.alpha) - 2.0 * (t.sigma - s.sigma)


class RateSpace(Space):
    """A space whose alpha decays at a rate beta: alpha = e^(-B/2), B the integral of beta."""

    def at_integral(self, integral: Values) -> tuple[Values, Values]:
        """(alpha, sigma) where the integral of the rate is B."""
        raise NotImplementedError

    def integral(self, rho: Values) -> Values:
        """B at the noise level rho."""
        raise NotImplementedError


class _VariancePreserving(RateSpace):
    name = "vp"

    def point(self, log_snr: Values) -> tuple[Values, Values]:
        f = functions(log_snr)
        ratio = f.exp(_minus_abs(log_snr))  # of the smaller square to the larger; cannot overflow
        return _ordered(log_snr, f.exp(-0.5 * f.log1p(ratio)), f.sqrt(ratio / (1.0 + ratio)))

    def squares(self, log_snr: Values) -> tuple[Values, Values]:
        """(alpha², sigma²) = (sigmoid(log_snr), sigmoid(-log_snr))."""
        ratio = functions(log_snr).exp(_minus_abs(log_snr))
        return _ordered(log_snr, 1.0 / (1.0 + ratio), ratio / (1.0 + ratio))

    def inverse_alpha(self, rho: Values) -> Values:
        return functions(rho).sqrt(1.0 + rho * rho)

    def radius(self, cos: Values, sin: Values) -> Values:
        return _one(cos)

    def prior_std(self, sigma: float) -> float:
        return 1.0

    def diffusion(self, t: Time, s: Time) -> float:
        return -2.0 * math.log(t.alpha / s.alpha)

    def at_integral(self, integral: Values) -> tuple[Values, Values]:
        f = functions(integral)
        return f.exp(-0.5 * integral), f.sqrt(-f.expm1(-integral))

    def integral(self, rho: Values) -> Values:
        return functions(rho).log1p(rho * rho)


class _SubVariancePreserving(RateSpace):
    name = "sub_vp"

    def point(self, log_snr: Values) -> tuple[Values, Values]:
        return self.at_integral(self.integral(functions(log_snr).exp(-0.5 * log_snr)))

    def inverse_alpha(self, rho: Values) -> Values:
        return 0.5 * (rho + functions(rho).sqrt(rho * rho + 4.0))

    def radius(self, cos: Values, sin: Values) -> Values:
        # the root of r² cos² + r sin = 1 that does not cancel
        return 2.0 / (sin + functions(sin).sqrt(sin**2 + 4.0 * cos**2))

    def diffusion(self, t: Time, s: Time) -> float:
        drift = math.log(t.alpha / s.alpha)
        # (alpha_s⁴ - alpha_t⁴)/2 without cancellation
        return -2.0 * drift - 0.5 * s.alpha**4 * -math.expm1(4.0 * drift)

    def at_integral(self, integral: Values) -> tuple[Values, Values]:
        f = functions(integral)
        return f.exp(-0.5 * integral), -f.expm1(-integral)

    def integral(self, rho: Values) -> Values:
        return 2.0 * _asinh(0.5 * rho)  # rho = e^(B/2) - e^(-B/2)


VP, VE, FLOW, SUB_VP = (
    _VariancePreserving(),
    _VarianceExploding(),
    _Flow(),
    _SubVariancePreserving(),
)
_BY_NAME: dict[str, Space] = {space.name: space for space in (VP, VE, FLOW, SUB_VP)}
SPACES = tuple(_BY_NAME)
"""The names of the spaces."""


def geometry(name: str) -> Space:
    """The space of this name. Raises ValueError for other names."""
    if name not in _BY_NAME:
        raise ValueError(f"fastdiff.schedule: expected space in {list(SPACES)}, got {name!r}.")
    return _BY_NAME[name]


def on_curve(name: str, log_snr: Values) -> tuple[Values, Values]:
    """(alpha, sigma) at a log-SNR in the space of this name."""
    return geometry(name).point(log_snr)


def functions(value: Values) -> ModuleType:
    """The module with exp, log1p, sqrt … for this kind of value: math, numpy or torch."""
    if isinstance(value, (float, int)):
        return math
    if isinstance(value, (np.ndarray, np.generic)):
        return np
    import torch

    return torch


def _asinh(value: Values) -> Values:
    f = functions(value)
    return f.arcsinh(value) if f is np else f.asinh(value)


def _one(like: Values) -> Values:
    f = functions(like)
    return 1.0 if f is math else f.ones_like(like)


def select(condition: Values, yes: Values, no: Values) -> Values:
    """yes where the condition holds, no elsewhere."""
    if isinstance(condition, (bool, np.bool_)):
        return yes if condition else no
    return functions(condition).where(condition, yes, no)


def _minus_abs(log_snr: Values) -> Values:
    """-|log_snr|, with the right derivatives at 0, where abs of a tensor has none."""
    return select(log_snr > 0, -log_snr, log_snr)


def _ordered(log_snr: Values, larger: Values, smaller: Values) -> tuple[Values, Values]:
    """(larger, smaller) where the log-SNR is positive, (smaller, larger) elsewhere."""
    signal = log_snr > 0
    return select(signal, larger, smaller), select(signal, smaller, larger)
