"""Grids of times: the points a solver visits, from noise to data.

leading, linspace and trailing space the timesteps themselves (Lin et al. 2024, table 2), and beta
takes them from the quantiles of Beta(0.6, 0.6) (Lee et al. 2024, section 4); of continuous
schedules they need not be whole. The others space the noise level rho = sigma/alpha, and the
network is given the time there:

    karras       rho^(1/7) evenly between the schedule's ends (Karras et al. 2022, eq. 5)
    exponential  ln rho evenly, which is uniform lambda = ln(alpha/sigma) (Lu et al. 2022); `lu` is another name of it
    ays…         levels fitted to Stable Diffusion 1.5 (`ays`), XL and Video, log-linear between (Sabour et al. 2024)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..schedule import CLEAN, Schedule, Time

# noise levels of ten steps and the least, below which the last step goes to clean data (Sabour et
# al. 2024, project page)
AYS = {
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
OF_TIMES = ("leading", "linspace", "trailing", "beta")
SPACINGS = (*OF_TIMES, "karras", "exponential", "lu", *AYS)
_KARRAS_RHO = 7.0
_BETA = 0.6


def timesteps(num_train_timesteps: int, steps: int, spacing: str) -> list[int]:
    """`steps` descending timesteps in [0, T), for the spacings of timesteps.

    Raises ValueError for steps outside [1, T] and an unknown spacing.
    """
    total = _checked(num_train_timesteps, steps)
    if spacing == "leading":
        return [i * (total // steps) for i in reversed(range(steps))]
    chosen = [round(t) for t in positions(total, steps, spacing, -1.0)]
    # a fine grid rounds neighbours together: each is moved to a timestep of its own
    for i in range(1, steps):
        chosen[i] = min(chosen[i], chosen[i - 1] - 1)
    for i in range(steps - 1, -1, -1):
        chosen[i] = max(chosen[i], steps - 1 - i)
    return chosen


def positions(total: int, steps: int, spacing: str, origin: float) -> list[float]:
    """`steps` descending times in (origin, T - 1], not rounded, for the spacings of timesteps."""
    if spacing == "leading":
        return [i * (total - 1) / steps for i in reversed(range(steps))]
    if spacing == "linspace":
        return [float(t) for t in np.linspace(total - 1, 0, steps)]
    if spacing == "trailing":
        return [(steps - i) * (total - 1 - origin) / steps + origin for i in range(steps)]
    if spacing == "beta":
        return [(total - 1) * q for q in _beta_quantiles(steps)]
    raise ValueError(
        f"fastdiff.Sampler: expected timestep_spacing in {list(SPACINGS)}, got {spacing!r}."
    )


def grid(schedule: Schedule, steps: int, spacing: str) -> list[Time]:
    """The visited times and, last, clean data (alpha = 1, sigma = 0)."""
    total = schedule.num_train_timesteps
    _checked(None if schedule.continuous else total, steps)
    if spacing in SPACINGS and spacing not in OF_TIMES:
        return [
            *(schedule.at_log_snr(-2.0 * v) for v in _log_levels(schedule, steps, spacing)),
            CLEAN,
        ]
    visited = (
        positions(total, steps, spacing, schedule.origin)
        if schedule.continuous
        else timesteps(total, steps, spacing)
    )
    return [*(schedule.at(t) for t in visited), CLEAN]


def given(schedule: Schedule, timesteps: Sequence[float]) -> list[Time]:
    """The user's own timesteps and, last, clean data. Raises ValueError unless they descend within
    [0, T).
    """
    total, values = (
        schedule.num_train_timesteps,
        [t if schedule.continuous else int(t) for t in timesteps],
    )
    if not values or not _descend(values) or not all(0 <= t <= total - 1 for t in values):
        raise ValueError(
            f"fastdiff.Sampler: expected descending timesteps in [0, {total}), got {values}."
        )
    return [*(schedule.at(t) for t in values), CLEAN]


def given_levels(schedule: Schedule, sigmas: Sequence[float]) -> list[Time]:
    """The points of the user's own noise levels and, last, clean data, which a closing 0 names too.

    A level is sigma/alpha, Karras' sigma; in the space `flow`, whose sigma ends at 1, it is that
    sigma.
    """
    values = [float(v) for v in sigmas]
    levels = values[:-1] if values and values[-1] == 0 else values
    top = 1.0 if schedule.space == "flow" else math.inf
    if (
        not levels
        or not _descend(levels)
        or not (0 < levels[-1] and levels[0] <= top and levels[0] < math.inf)
    ):
        raise ValueError(
            "fastdiff.Sampler: expected descending sigmas above 0 (and a 0 at the end), got"
            f" {values}."
        )
    if schedule.space == "flow":
        levels = [v / (1.0 - v) if v < 1 else math.inf for v in levels]
    return [*(schedule.at_log_snr(-2.0 * math.log(rho)) for rho in levels), CLEAN]


def _descend(values: Sequence[float]) -> bool:
    return all(a > b for a, b in zip(values, values[1:], strict=False))


def _checked(total: int | None, steps: int) -> int:
    if (
        isinstance(steps, bool)
        or not isinstance(steps, (int, np.integer))
        or steps < 1
        or (total and steps > total)
    ):
        bounds = (
            f"in [1, {total}], got {steps!r}. The schedule has {total}."
            if total
            else f">= 1, got {steps!r}."
        )
        raise ValueError(f"fastdiff.Sampler: expected steps {bounds}")
    return total or 0


def _log_levels(schedule: Schedule, steps: int, spacing: str) -> list[float]:
    """ln rho of the spacings of noise levels."""
    ramp = np.linspace(0.0, 1.0, steps)
    if spacing in AYS:
        known = np.log(AYS[spacing])
        return [
            float(v)
            for v in np.interp(np.arange(steps) / steps, np.linspace(0.0, 1.0, len(known)), known)
        ]
    high, low = (-0.5 * float(schedule.log_snr[i]) for i in (-1, 0))
    if high == math.inf:
        raise ValueError(
            "fastdiff.Sampler: expected a schedule with a largest noise level for the spacing"
            f" {spacing!r}, got one that ends in pure noise. Use one of {list(OF_TIMES)}, or"
            " sigmas=."
        )
    if spacing == "karras":
        ends = [math.exp(v / _KARRAS_RHO) for v in (high, low)]
        inner = [_KARRAS_RHO * math.log(ends[0] + r * (ends[1] - ends[0])) for r in ramp[1:-1]]
        return [high, *inner, low][:steps]  # the ends to the bit: they are timesteps
    return [high, *(high + r * (low - high) for r in ramp[1:-1]), low][:steps]


def _beta_quantiles(steps: int) -> list[float]:
    """Quantiles of Beta(a, a), descending from 1: its distribution function tabulated and
    inverted.
    """
    # substituting u = sin²(phi) takes the poles at both ends out of the density
    phi = np.linspace(0.0, np.pi / 2, 4097)
    density = (np.sin(phi) * np.cos(phi)) ** (2 * _BETA - 1)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return [
        float(q)
        for q in np.interp(1.0 - np.linspace(0.0, 1.0, steps), mass / mass[-1], np.sin(phi) ** 2)
    ]
