"""Grids of times: the discrete timesteps a solver visits, from noise to data.

leading, linspace and trailing are the three spacings of Lin et al. 2024 (table 2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..schedule import Schedule

SPACINGS = ("leading", "linspace", "trailing")


class Time(NamedTuple):
    """A point of the grid: the time the network is given, and q(x_t | x0) = N(alpha x0, sigma² I) there."""

    t: float
    alpha: float
    sigma: float
    log_snr: float

    def transition(self, s: Time) -> tuple[float, float]:
        """(alpha_ts, sigma_ts²) of q(x_t | x_s) = N(alpha_ts x_s, sigma_ts² I), s less noisy (Kingma et al. 2021,
        eq. 20–21): alpha_t/alpha_s and -expm1(log_snr_t - log_snr_s)·sigma_t², without cancellation."""
        return self.alpha / s.alpha, -math.expm1(self.log_snr - s.log_snr) * self.sigma**2


CLEAN = Time(t=-1.0, alpha=1.0, sigma=0.0, log_snr=math.inf)


def timesteps(num_train_timesteps: int, steps: int, spacing: str) -> list[int]:
    """`steps` descending timesteps in [0, T).

    Raises ValueError for steps outside [1, T] and an unknown spacing.
    """
    total = num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= total:
        raise ValueError(f"fastdiff.Sampler: expected steps in [1, {total}], got {steps!r}. The schedule has {total}.")
    if spacing == "leading":
        return [i * (total // steps) for i in reversed(range(steps))]
    if spacing == "linspace":
        return [int(t) for t in np.linspace(total - 1, 0, steps).round()]
    if spacing == "trailing":
        return [round((steps - i) * total / steps) - 1 for i in range(steps)]
    raise ValueError(f"fastdiff.Sampler: expected timestep_spacing in {list(SPACINGS)}, got {spacing!r}.")


def grid(schedule: Schedule, steps: int, spacing: str) -> list[Time]:
    """The visited times and, last, clean data (alpha = 1, sigma = 0)."""
    visited = timesteps(schedule.num_train_timesteps, steps, spacing)
    points = [
        Time(float(t), float(schedule.alpha[t]), float(schedule.sigma[t]), float(schedule.log_snr[t])) for t in visited
    ]
    return [*points, CLEAN]
