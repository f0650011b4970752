"""Checks of the arguments that schedules are made from; each raises ValueError in one sentence.

`where` is the constructor of `Schedule` that the error message names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..whole import whole


def size(where: str, value: int) -> int:
    """num_train_timesteps as an int, at least 1."""
    count = whole(value)
    if count is None or count < 1:
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected num_train_timesteps >= 1, got {value!r}."
        )
    return count


def levels(where: str, sigma_min: float, sigma_max: float) -> None:
    """0 < sigma_min < sigma_max, finite."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected 0 < sigma_min < sigma_max, got {sigma_min!r} and"
            f" {sigma_max!r}."
        )


def positive(where: str, name: str, value: float) -> None:
    """A finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"fastdiff.Schedule.{where}: expected {name} > 0, got {value!r}.")


def rates(where: str, beta_min: float, beta_max: float) -> None:
    """0 < beta_min <= beta_max, finite."""
    if not 0 < beta_min <= beta_max < math.inf:
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected 0 < beta_min <= beta_max, got {beta_min!r} and"
            f" {beta_max!r}."
        )


def table(where: str, name: str, values: ArrayLike | Sequence[float]) -> NDArray[np.float64]:
    """`values` as a float64 copy [T]; every entry must be inside (0, 1)."""
    table = np.array(values, dtype=np.float64)
    if table.ndim != 1 or table.size == 0:
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected {name} of shape [T], got shape"
            f" {list(table.shape)}."
        )
    inside = (table > 0) & (table < 1)  # False for NaN too
    if not inside.all():
        at = int(np.argmin(inside))
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected {name} inside (0, 1), got {float(table[at])} at"
            f" index {at}."
        )
    return table


def falling(where: str, name: str, values: ArrayLike) -> NDArray[np.float64]:
    """`values` as a float64 copy [T], strictly decreasing and finite."""
    table = np.array(values, dtype=np.float64)
    if table.ndim != 1 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected {name} as finite numbers [T], got an array of"
            f" shape {list(table.shape)}"
            + (" with infinities or NaN." if table.ndim == 1 and table.size else ".")
        )
    if (np.diff(table) >= 0).any():
        at = int(np.argmax(np.diff(table) >= 0)) + 1
        raise ValueError(
            f"fastdiff.Schedule.{where}: expected strictly decreasing {name}, got {table[at]} at"
            f" index {at} after {table[at - 1]}. Noise grows with t."
        )
    return table
