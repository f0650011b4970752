"""Grids of times: the points that a solver visits, from noise to data.

A spacing is a function and an entry in TIMESTEPS, LEVELS or POINTS. Those in TIMESTEPS space the
timesteps (Lin et al. 2024, table 2, and Lee et al. 2024, section 4); a continuous schedule takes
their values unrounded. Those in LEVELS space the noise level rho = sigma/alpha, and the network
gets the time that the schedule has there:

    leading      i floor(T/n); i (T - 1)/n in a continuous schedule
    linspace     evenly from T - 1 to 0, both included
    trailing     evenly from T - 1, with clean data as the next one after the last
    beta         quantiles of Beta(0.6, 0.6)
    karras       rho^(1/7) evenly between the schedule's ends (Karras et al. 2022, eq. 5)
    exponential  ln rho evenly, so lambda = ln(alpha/sigma) too (Lu et al. 2022); also named `lu`
    ays…         levels fitted to Stable Diffusion 1.5 (`ays`), XL (`ays_sdxl`) and Video
                 (`ays_svd`), log-linear between them (Sabour et al. 2024)

Those in POINTS give the points themselves. `shapes` has their formulas, and those of simple,
ddim_uniform and beta57.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..schedule import CLEAN, Schedule, Time
from ..whole import whole
from . import shapes
from .aliases import grid_name
from .options import numbers, one_of, shown

# noise levels of ten steps; after the eleventh, the last step goes to clean data (Sabour et al.
# 2024, project page)
AYS = {
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
_KARRAS_RHO = 7.0
_BETA = 0.6
_MOST_STEPS = 2**20  # of a continuous schedule, which has any number of points


class _Timesteps(NamedTuple):
    """A spacing of timesteps.

    Attributes:
        positions: (T, steps, origin) -> descending times in (origin, T - 1]; origin is the time of
            clean data, -1 for the timesteps of a discrete schedule.
        whole: (T, steps) -> descending integers in [0, T), where these are not the positions
            rounded.
    """

    positions: Callable[[int, int, float], list[float]]
    whole: Callable[[int, int], list[int]] | None = None


# (a function that returns ln rho of the schedule's noisiest and cleanest time, steps) -> ln rho,
# descending
_Levels = Callable[[Callable[[], tuple[float, float]], int], list[float]]


def _leading(total: int, steps: int, origin: float) -> list[float]:
    return [i * (total - 1) / steps for i in reversed(range(steps))]


def _leading_whole(total: int, steps: int) -> list[int]:
    return [i * (total // steps) for i in reversed(range(steps))]


def _linspace(total: int, steps: int, origin: float) -> list[float]:
    return [float(t) for t in np.linspace(total - 1, 0, steps)]


def _trailing(total: int, steps: int, origin: float) -> list[float]:
    return [(steps - i) * (total - 1 - origin) / steps + origin for i in range(steps)]


def _beta(total: int, steps: int, origin: float) -> list[float]:
    """(T - 1) times quantiles of Beta(a, a), from its distribution function, tabulated and
    inverted.
    """
    # substituting u = sin²(phi) removes the poles at both ends of the density
    phi = np.linspace(0.0, np.pi / 2, 4097)
    density = (np.sin(phi) * np.cos(phi)) ** (2 * _BETA - 1)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    quantiles = np.interp(1.0 - np.linspace(0.0, 1.0, steps), mass / mass[-1], np.sin(phi) ** 2)
    return [(total - 1) * float(q) for q in quantiles]


def _karras(ends: Callable[[], tuple[float, float]], steps: int) -> list[float]:
    high, low = ends()
    first, last = (math.exp(v / _KARRAS_RHO) for v in (high, low))
    ramp = np.linspace(0.0, 1.0, steps)[1:-1]
    inner = [_KARRAS_RHO * math.log(first + r * (last - first)) for r in ramp]
    return [high, *inner, low][:steps]  # the ends as they are: they are timesteps to the bit


def _exponential(ends: Callable[[], tuple[float, float]], steps: int) -> list[float]:
    high, low = ends()
    return [high, *(high + r * (low - high) for r in np.linspace(0.0, 1.0, steps)[1:-1]), low][
        :steps
    ]


def _fitted(rho: Sequence[float]) -> _Levels:
    """The spacing of fitted levels: log-linear between them, for any number of steps."""

    def levels(ends: Callable[[], tuple[float, float]], steps: int) -> list[float]:
        at = np.linspace(0.0, 1.0, len(rho))
        return [float(v) for v in np.interp(np.arange(steps) / steps, at, np.log(rho))]

    return levels


TIMESTEPS = {
    "leading": _Timesteps(_leading, _leading_whole),
    "linspace": _Timesteps(_linspace),
    "trailing": _Timesteps(_trailing),
    "beta": _Timesteps(_beta),
    "simple": _Timesteps(_trailing, shapes.simple_timesteps),
    "ddim_uniform": _Timesteps(shapes.ddim_positions, shapes.ddim_timesteps),
    "beta57": _Timesteps(shapes.beta57_positions),
}
LEVELS: dict[str, _Levels] = {
    "karras": _karras,
    "exponential": _exponential,
    "lu": _exponential,
    **{name: _fitted(rho) for name, rho in AYS.items()},
}
POINTS: dict[str, Callable[[Schedule, int], list[Time]]] = {
    "normal": shapes.normal,
    "sgm_uniform": shapes.sgm_uniform,
    "kl_optimal": shapes.kl_optimal,
    "linear_quadratic": shapes.of_shares("linear_quadratic", shapes.shares_linear_quadratic),
    "bong_tangent": shapes.of_shares("bong_tangent", shapes.shares_bong_tangent),
}
SPACINGS = (*TIMESTEPS, *LEVELS, *POINTS)
_SPACING, _OF_TIMESTEPS = one_of(SPACINGS), one_of(TIMESTEPS)


def timesteps(num_train_timesteps: int, steps: int, spacing: str) -> list[int]:
    """Returns `steps` descending timesteps in [0, T), for a spacing of timesteps.

    Raises ValueError for steps outside [1, T] and for an unknown spacing.
    """
    total = _check_steps(num_train_timesteps, steps)
    entry = _entry(grid_name(spacing))
    if entry.whole is not None:
        return entry.whole(total, steps)
    chosen = [round(t) for t in entry.positions(total, steps, -1.0)]
    # on a fine grid neighbours round to the same timestep; each is moved to one that is free
    for i in range(1, steps):
        chosen[i] = min(chosen[i], chosen[i - 1] - 1)
    for i in range(steps - 1, -1, -1):
        chosen[i] = max(chosen[i], steps - 1 - i)
    return chosen


def grid(schedule: Schedule, steps: int, spacing: str) -> list[Time]:
    """Returns the visited times and, last, clean data (alpha = 1, sigma = 0).

    Raises ValueError for an unknown spacing, for steps outside [1, T], and for a spacing between
    the schedule's noise levels where the largest of them is infinite.
    """
    spacing = grid_name(spacing)
    total = schedule.num_train_timesteps
    _check_steps(None if schedule.continuous else total, steps)
    _SPACING.check("timestep_spacing", spacing)
    if spacing in POINTS:
        return [*POINTS[spacing](schedule, steps), CLEAN]
    if spacing in LEVELS:

        def ends() -> tuple[float, float]:
            high, low = (-0.5 * float(schedule.log_snr[i]) for i in (-1, 0))
            if high == math.inf:
                raise ValueError(
                    "fastdiff.Sampler: expected a schedule with a largest noise level for the"
                    f" spacing {spacing!r}, got one that ends in pure noise. Use one of"
                    f" {list(TIMESTEPS)}, or sigmas=."
                )
            return high, low

        levels = LEVELS[spacing](ends, steps)
        return [*(schedule.at_log_snr(-2.0 * v) for v in levels), CLEAN]
    visited = (
        _entry(spacing).positions(total, steps, schedule.origin)
        if schedule.continuous
        else timesteps(total, steps, spacing)
    )
    return [*(schedule.at(t) for t in visited), CLEAN]


def of_timesteps(schedule: Schedule, timesteps: Sequence[float]) -> list[Time]:
    """Returns the points of the user's own timesteps and, last, clean data.

    Raises ValueError unless they descend within [0, T).
    """
    total = schedule.num_train_timesteps
    given = numbers("timesteps", "as a list of numbers", timesteps)
    values = [t if schedule.continuous or not math.isfinite(t) else int(t) for t in given]
    if not values or not _descend(values) or not all(0 <= t <= total - 1 for t in values):
        raise ValueError(
            f"fastdiff.Sampler: expected descending timesteps in [0, {total}), got {values}."
        )
    return [*(schedule.at(t) for t in values), CLEAN]


def of_levels(schedule: Schedule, sigmas: Sequence[float]) -> list[Time]:
    """Returns the points of the user's own noise levels and, last, clean data.

    A level is sigma/alpha, Karras' sigma; for a flow schedule, where sigma ends at 1, it is that
    sigma. A 0 at the end names clean data and may be left out. Raises ValueError unless the levels
    descend and are above 0.
    """
    values = [float(v) for v in numbers("sigmas", "as a list of numbers", sigmas)]
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


def _entry(spacing: str) -> _Timesteps:
    chosen: str = _OF_TIMESTEPS.check("timestep_spacing", spacing)
    return TIMESTEPS[chosen]


def _descend(values: Sequence[float]) -> bool:
    return all(a > b for a, b in zip(values, values[1:], strict=False))


def _check_steps(total: int | None, steps: int) -> int:
    """Checks the number of steps, against the T of a discrete schedule, and returns T or 0."""
    count, most = whole(steps) or 0, total or _MOST_STEPS
    if not 1 <= count <= most:
        bounds = (
            f"in [1, {total}], got {shown(steps)}. The schedule has {total}."
            if total
            else f">= 1, got {shown(steps)}."
            if count < 1
            else f"in [1, {most}], got {shown(steps)}."
        )
        raise ValueError(f"fastdiff.Sampler: expected steps {bounds}")
    return total or 0


def karras_levels(fractions: Any, first: float, last: float, rho: float = _KARRAS_RHO) -> Any:
    """The levels of Karras et al. 2022, eq. 5, at fractions of the way from the first to the last.

    fractions: in [0, 1], a number, an array or a tensor; the levels are of the same type.
    """
    a, b = first ** (1 / rho), last ** (1 / rho)
    return (a + fractions * (b - a)) ** rho
