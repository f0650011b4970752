"""Points of a schedule: q(x_t | x0) = N(alpha x0, sigma² I) at a time t.

Schedules differ in their space, the curve on which (alpha, sigma) lies: `vp` alpha² + sigma² = 1
(variance preserving), `ve` alpha = 1 (variance exploding), `flow` alpha + sigma = 1 (flow
matching), `sub_vp` alpha² + sigma = 1. A log-SNR ln(alpha²/sigma²) (Kingma et al. 2021, eq. 2)
names one point of it. Pure noise, alpha = 0, lies at log-SNR -inf; clean data, sigma = 0, at +inf.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SPACES = ("vp", "ve", "flow", "sub_vp")


class Time(NamedTuple):
    """A point of a schedule: the time the network is given, and q(x_t | x0) = N(alpha x0, sigma² I)
    there.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float

    @property
    def rho(self) -> float:
        """The noise level sigma/alpha, Karras' sigma."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """lambda = ln(alpha/sigma) (Lu et al. 2022)."""
        return 0.5 * self.log_snr

    def transition(self, s: Time) -> tuple[float, float]:
        """(alpha_ts, sigma_ts²) of q(x_t | x_s) = N(alpha_ts x_s, sigma_ts² I), s less noisy
        (Kingma et al. 2021, eq. 20–21): alpha_t/alpha_s and -expm1(log_snr_t - log_snr_s)·sigma_t²,
        without cancellation.
        """
        return self.alpha / s.alpha, -math.expm1(self.log_snr - s.log_snr) * self.sigma**2


CLEAN = Time(t=-1.0, alpha=1.0, sigma=0.0, log_snr=math.inf)


def on_curve(space: str, log_snr: float) -> tuple[float, float]:
    """(alpha, sigma) of this log-SNR in a space, without cancellation."""
    if space == "ve":
        return 1.0, math.exp(-0.5 * log_snr)
    if space == "vp":
        if log_snr > 0:
            low = math.exp(-log_snr)
            return math.exp(-0.5 * math.log1p(low)), math.sqrt(low / (1.0 + low))
        high = math.exp(log_snr)
        return math.sqrt(high / (1.0 + high)), math.exp(-0.5 * math.log1p(high))
    if space == "sub_vp":
        # alpha = e^(-B/2), sigma = 1 - alpha², so rho = 2 sinh(B/2)
        if log_snr == -math.inf:
            return 0.0, 1.0
        total = 2.0 * math.asinh(0.5 * math.exp(-0.5 * log_snr))
        return math.exp(-0.5 * total), -math.expm1(-total)
    if log_snr > 0:
        rho = math.exp(-0.5 * log_snr)
        return 1.0 / (1.0 + rho), rho / (1.0 + rho)
    rate = math.exp(0.5 * log_snr)
    return rate / (1.0 + rate), 1.0 / (1.0 + rate)
