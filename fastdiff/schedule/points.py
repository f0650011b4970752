"""A point of a schedule: q(x_t | x0) = N(alpha x0, sigma² I) at a time t."""

from __future__ import annotations

import math
from typing import NamedTuple


class Time(NamedTuple):
    """A point of a schedule: its time, alpha and sigma, and the log-SNR ln(alpha²/sigma²)."""

    t: float
    alpha: float
    sigma: float
    log_snr: float

    @property
    def rho(self) -> float:
        """The noise level sigma/alpha, which Karras et al. 2022 call sigma."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """lambda = ln(alpha/sigma) (Lu et al. 2022)."""
        return 0.5 * self.log_snr

    def transition(self, s: Time) -> tuple[float, float]:
        """(alpha_ts, sigma_ts²) of q(x_t | x_s) = N(alpha_ts x_s, sigma_ts² I), s less noisy.

        alpha_ts = alpha_t/alpha_s and sigma_ts² = -expm1(log_snr_t - log_snr_s)·sigma_t² (Kingma
        et al. 2021, eq. 20–22), a form without cancellation.
        """
        return self.alpha / s.alpha, -math.expm1(self.log_snr - s.log_snr) * self.sigma**2


CLEAN = Time(t=-1.0, alpha=1.0, sigma=0.0, log_snr=math.inf)
"""Clean data."""
