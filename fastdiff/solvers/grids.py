"""Grids of times: the points a solver visits, from noise to data.

leading, linspace and trailing space the timesteps themselves (Lin et al. 2024, table 2). The others space the noise level
rho = sigma/alpha between the schedule's ends, and the network is given the nearest timestep: karras rho^(1/7) evenly
(Karras et al. 2022, eq. 5), exponential ln rho evenly, which is uniform log-SNR (Lu et al. 2022), and beta the quantiles
of Beta(0.6, 0.6) over the timesteps (Lee et al. 2024, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..schedule import CLEAN, Schedule, Time

SPACINGS = ("leading", "linspace", "trailing", "karras", "exponential", "beta")
_KARRAS_RHO = 7.0
_BETA = 0.6


def timesteps(num_train_timesteps: int, steps: int, spacing: str) -> list[int]:
    """`steps` descending timesteps in [0, T), for the spacings of timesteps.

    Raises ValueError for steps outside [1, T] and an unknown spacing.
    """
    total = _checked(num_train_timesteps, steps)
    if spacing == "leading":
        return [i * (total // steps) for i in reversed(range(steps))]
    if spacing == "linspace":
        return [int(t) for t in np.linspace(total - 1, 0, steps).round()]
    if spacing == "trailing":
        return [round((steps - i) * total / steps) - 1 for i in range(steps)]
    if spacing == "beta":
        return _beta_quantiles(total, steps)
    raise ValueError(f"fastdiff.Sampler: expected timestep_spacing in {list(SPACINGS)}, got {spacing!r}.")


def grid(schedule: Schedule, steps: int, spacing: str) -> list[Time]:
    """The visited times and, last, clean data (alpha = 1, sigma = 0)."""
    if spacing not in ("karras", "exponential"):
        visited = timesteps(schedule.num_train_timesteps, steps, spacing)
        return [*(schedule.at(t) for t in visited), CLEAN]
    _checked(schedule.num_train_timesteps, steps)
    high, low = (0.5 * -float(schedule.log_snr[i]) for i in (-1, 0))  # ln rho at both ends
    ramp = np.linspace(0.0, 1.0, steps)
    if spacing == "exponential":
        log_rho = high + ramp * (low - high)
    else:
        ends = [math.exp(v / _KARRAS_RHO) for v in (high, low)]
        log_rho = _KARRAS_RHO * np.log(ends[0] + ramp * (ends[1] - ends[0]))
    return [*(schedule.at_log_snr(-2.0 * float(v)) for v in log_rho), CLEAN]


def given(schedule: Schedule, timesteps: Sequence[int]) -> list[Time]:
    """The user's own timesteps and, last, clean data. Raises ValueError unless they descend within [0, T)."""
    total, values = schedule.num_train_timesteps, [int(t) for t in timesteps]
    falling = all(a > b for a, b in zip(values, values[1:], strict=False))
    if not values or not falling or not all(0 <= t < total for t in values):
        raise ValueError(f"fastdiff.Sampler: expected descending timesteps in [0, {total}), got {values}.")
    return [*(schedule.at(t) for t in values), CLEAN]


def _checked(total: int, steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= total:
        raise ValueError(f"fastdiff.Sampler: expected steps in [1, {total}], got {steps!r}. The schedule has {total}.")
    return total


def _beta_quantiles(total: int, steps: int) -> list[int]:
    """Timesteps at the quantiles of Beta(a, a): its distribution function tabulated over the timesteps, inverted."""
    # substituting u = sin²(phi) takes the poles at both ends out of the density
    phi = np.linspace(0.0, np.pi / 2, 4097)
    density = (np.sin(phi) * np.cos(phi)) ** (2 * _BETA - 1)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    quantiles = np.interp(1.0 - np.linspace(0.0, 1.0, steps), mass / mass[-1], np.sin(phi) ** 2)
    chosen = np.rint(quantiles * (total - 1)).astype(int)
    # a fine grid rounds neighbours together: each is moved to a timestep of its own
    for i in range(1, steps):
        chosen[i] = min(chosen[i], chosen[i - 1] - 1)
    for i in range(steps - 1, -1, -1):
        chosen[i] = max(chosen[i], steps - 1 - i)
    return [int(t) for t in chosen]
