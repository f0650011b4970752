"""Grids as diffusers rounds them: spaced timesteps (Lin et al. 2024, table 2) and noise levels.

Karras' levels (Karras et al. 2022, eq. 5), exponential and beta levels are spaced in sigma, and the
network's timesteps are found by interpolating the training table in log sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...solvers.grids import karras_levels
from .tables import numpy_float

_BETA = 0.6


def spaced(
    where: str, total: int, steps: int, spacing: str, offset: int = 0
) -> NDArray[np.float64]:
    """`steps` descending timesteps of [0, total); those of linspace are not rounded.

    Raises ValueError for another spacing.
    """
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps)[::-1]
    if spacing == "leading":
        return (np.arange(0, steps) * (total // steps))[::-1].astype(np.float64) + offset
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps)) - 1.0
    raise ValueError(
        f"fastdiff.{where}: expected timestep_spacing in ['linspace', 'leading', 'trailing'], got"
        f" {spacing!r}."
    )


def whole(where: str, total: int, steps: int, spacing: str, offset: int = 0) -> NDArray[np.int64]:
    """`spaced`, rounded to integers."""
    return spaced(where, total, steps, spacing, offset).round().astype(np.int64)


def without_last(
    where: str, total: int, last: int, steps: int, spacing: str, offset: int = 0
) -> NDArray[np.int64]:
    """`steps` descending timesteps of [0, last), for grids that leave out the last timestep.

    linspace and leading are those of steps + 1 without the last one.
    """
    if spacing == "linspace":
        values: NDArray[Any] = np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
    elif spacing == "leading":
        values = (np.arange(0, steps + 1) * (last // (steps + 1)))[::-1][:-1] + offset
    elif spacing == "trailing":
        values = np.arange(last, 0, -total / steps).round() - 1
    else:
        raise ValueError(
            f"fastdiff.{where}: expected timestep_spacing in ['linspace', 'leading', 'trailing'],"
            f" got {spacing!r}."
        )
    return values.astype(np.int64)


def descending(where: str, total: int, timesteps: Any) -> NDArray[np.int64]:
    """The user's timesteps. Raises ValueError unless they descend below `total`."""
    values = [int(t) for t in timesteps]
    if (
        any(a <= b for a, b in zip(values, values[1:], strict=False))
        or not values
        or values[0] >= total
    ):
        raise ValueError(
            f"fastdiff.{where}: expected timesteps in descending order below {total}, got {values}."
        )
    return np.array(values, dtype=np.int64)


def exactly_one(where: str, num_inference_steps: Any, timesteps: Any) -> None:
    """Raises ValueError unless exactly one of both arguments is given."""
    if (num_inference_steps is None) == (timesteps is None):
        raise ValueError(
            f"fastdiff.{where}.set_timesteps: expected one of num_inference_steps and timesteps."
        )


def at_most(where: str, steps: int, total: int) -> None:
    """Raises ValueError unless 1 <= steps <= total."""
    if not 1 <= steps <= total:
        raise ValueError(
            f"fastdiff.{where}: expected num_inference_steps in [1, {total}], got {steps}."
        )


def timestep_of(
    sigma: NDArray[Any], log_sigmas: NDArray[Any], *, narrow: bool = False
) -> NDArray[Any]:
    """The timestep of each sigma, linear in log sigma between training timesteps.

    Beyond the ends it is the end's. narrow: whether everything is computed in the levels'
    precision, as diffusers does where it computes with tensors.
    """
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    low = np.clip(np.searchsorted(log_sigmas, log_sigma, side="right") - 1, 0, len(log_sigmas) - 2)
    weight = np.clip((log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[low + 1]), 0, 1)
    if narrow:
        low = low.astype(weight.dtype)
    return (1 - weight) * low + weight * (low + 1)


def kinds(
    config: Mapping[str, Any], names: tuple[str, ...] = ("karras", "exponential", "beta")
) -> list[str]:
    """The spacings of sigma that the configuration selects."""
    return [name for name in names if config.get(f"use_{name}_sigmas")]


def one_kind(
    where: str,
    config: Mapping[str, Any],
    names: tuple[str, ...] = ("karras", "exponential", "beta"),
) -> None:
    """Raises ValueError where the configuration selects two spacings of sigma."""
    if len(kinds(config, names)) > 1:
        raise ValueError(
            f"fastdiff.{where}: expected one spacing of sigmas, got {kinds(config, names)}. Choose"
            " one."
        )


def respaced(
    kind: str, config: Mapping[str, Any], levels: NDArray[Any], steps: int
) -> NDArray[Any]:
    """`steps` levels from the first to the last of `levels`.

    The configuration's sigma_max and sigma_min replace these ends where they are set.
    """
    low, high = config.get("sigma_min"), config.get("sigma_max")
    low = float(levels[-1]) if low is None else low
    high = float(levels[0]) if high is None else high
    if kind == "karras":
        return karras_levels(np.linspace(0, 1, steps), high, low)
    if kind == "exponential":
        return np.exp(np.linspace(math.log(high), math.log(low), steps))
    from scipy.stats import beta  # only this grid needs it

    return low + beta.ppf(1 - np.linspace(0, 1, steps), _BETA, _BETA) * (high - low)


def ended(levels: NDArray[Any], last: float) -> NDArray[Any]:
    """The levels and the last one, as diffusers rounds them."""
    return np.concatenate([levels, [last]]).astype(numpy_float())
