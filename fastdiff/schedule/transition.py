"""q(x_t | x_s) between any two points of a schedule, as arrays; `Schedule.transition` is its name
outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .points import CLEAN, Time

if TYPE_CHECKING:
    from .schedule import Schedule

Array = NDArray[np.float64]


def between(schedule: Schedule, t: ArrayLike, s: ArrayLike) -> tuple[Array, Array]:
    """(alpha_ts, sigma_ts²) of the shape of t and s; see `Schedule.transition`."""
    late, early = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64))
    inside = (early <= late) & (early >= -1) & (late <= schedule.num_train_timesteps - 1)
    if schedule.continuous:
        below = min(schedule.origin, 0.0)
        inside &= ((late > below) | (late == 0) | (late == -1)) & (
            (early > below) | (early == 0) | (early == -1)
        )
    else:
        inside &= (late == np.floor(late)) & (early == np.floor(early))
    if not inside.all():
        at = np.unravel_index(int(np.argmin(inside)), inside.shape)
        raise ValueError(
            "fastdiff.Schedule.transition: expected timesteps -1 <= s <= t <"
            f" {schedule.num_train_timesteps}, got t = {late[at]:g} and s = {early[at]:g}. x_t is"
            " the noisier of the two."
        )

    def point(u: float) -> Time:
        return CLEAN if u == -1 else schedule.at(u)

    pairs = [
        (1.0, 0.0) if a == b else point(float(a)).transition(point(float(b)))
        for a, b in zip(late.ravel(), early.ravel(), strict=True)
    ]
    table = np.array(pairs, np.float64).reshape(*late.shape, 2)
    return table[..., 0], table[..., 1]
