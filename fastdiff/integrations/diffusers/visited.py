"""The points that a run of `fastdiff.Scheduler` visits, from what a pipeline passes.

With a named grid they are that grid's, on the schedule of the configuration. Without one they are
those that diffusers' own class visits, its end included. A pipeline's `sigmas` and `timesteps` are
visited instead of either, except that a flow's levels which are evenly spaced from 1, as most
pipelines pass them, mean no more than their number.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...schedule import CLEAN, Time
from ...solvers.grids import grid, of_levels, of_timesteps
from . import members
from .sampler_settings import Trained

_EVEN = 1e-4  # how far a pipeline's float32 levels may be from evenly spaced ones


def points(
    known: Trained,
    name: str,
    config: Mapping[str, Any],
    *,
    spacing: str | None,
    steps: int | None,
    sigmas: Sequence[float] | None,
    timesteps: Sequence[float] | None,
    mu: float | None,
) -> list[Time]:
    """The points from noise to data, with the one that the last step goes to.

    Args:
        known: the network's schedule.
        name, config: diffusers' class, and the configuration.
        spacing: of `fastdiff.solvers.grids`; None for diffusers' own points.
        other arguments: as passed to `set_timesteps`.
    """
    flow = known.kind == "flow"
    if flow and sigmas is not None:
        levels = [float(v) for v in sigmas]
        levels = levels[:-1] if levels and levels[-1] == 0 else levels
        if not (spacing and evenly(levels)):
            return of_levels(known.schedule, _shifted(known, config, levels))
        steps, sigmas, timesteps = len(levels), None, None
    if flow and timesteps is not None:  # times of the network, which are levels
        levels = [float(t) / known.schedule.num_train_timesteps for t in timesteps]
        levels = [1.0 - v for v in levels] if known.inverted else levels
        return of_levels(known.schedule, levels)
    if sigmas is not None:
        return of_levels(known.schedule, sigmas)
    if timesteps is not None and known.kind == "vp":
        return of_timesteps(known.schedule, timesteps)
    if timesteps is not None:
        raise ValueError(
            "fastdiff.Scheduler.set_timesteps: expected sigmas, got timesteps, which are not the"
            " times of this network. Pass sigmas=."
        )
    assert steps is not None
    if spacing is None:
        return _diffusers(known, name, config, steps, mu)
    times = grid(known.schedule, steps, spacing)
    terminal = config.get("shift_terminal") if flow else None
    if not terminal:
        return times
    levels = [t.sigma for t in times[:-1]]
    return of_levels(known.schedule, _stretched(levels, float(terminal)))


def evenly(levels: Sequence[float]) -> bool:
    """Whether levels are evenly spaced from 1 to at most the spacing, as pipelines pass them."""
    n = len(levels)
    return (
        n > 0
        and levels[-1] < 1.0 / n + _EVEN
        and bool(np.abs(np.linspace(1.0, levels[-1], n) - levels).max() < _EVEN)
    )


def _stretched(levels: Sequence[float], terminal: float) -> list[float]:
    """Levels scaled about 1 so that the last one is `terminal`."""
    factor = (1.0 - terminal) / (1.0 - levels[-1]) if levels[-1] < 1 else 1.0
    return [1.0 - (1.0 - v) * factor for v in levels]


def _shifted(known: Trained, config: Mapping[str, Any], levels: Sequence[float]) -> list[float]:
    """A pipeline's levels with the configuration's shift (Esser et al. 2024, eq. 23)."""
    shift = float(known.schedule.to_config()["shift"])
    levels = [shift * v / (1.0 + (shift - 1.0) * v) for v in levels]
    terminal = config.get("shift_terminal")
    return _stretched(levels, float(terminal)) if terminal else levels


def _diffusers(
    known: Trained, name: str, config: Mapping[str, Any], steps: int, mu: float | None
) -> list[Time]:
    """The points of diffusers' own class."""
    cls, schedule = members.original(name), known.schedule
    if cls is None:
        raise ValueError(
            f"fastdiff.Scheduler: expected a class of diffusers for its grid, got {name!r}. Name a"
            " grid."
        )
    own = cls(**{k: config[k] for k in inspect.signature(cls).parameters if k in config})
    passed = {"mu": mu} if "mu" in inspect.signature(own.set_timesteps).parameters else {}
    own.set_timesteps(num_inference_steps=steps, **passed)
    levels = [] if not hasattr(own, "sigmas") else own.sigmas.tolist()
    if known.kind != "vp":
        levels = [1.0 - v for v in levels] if known.inverted else levels
        distinct = [v for i, v in enumerate(levels) if i == 0 or v != levels[i - 1]]
        last = distinct.pop()
        times = of_levels(schedule, distinct)
        if known.kind == "flow" or last == 0:
            return times
        return [*times[:-1], of_levels(schedule, [last])[0]]
    # a class of two calls lists a second time after each but the first
    visited = [float(t) for t in own.timesteps.tolist()][:: getattr(own, "order", 1)]
    visited = sorted(set(visited), reverse=True)
    whole = all(t % 1 == 0 for t in visited)
    if whole or not levels:
        times = [schedule.at(int(t)) for t in visited]
    else:
        times = of_levels(schedule, [levels[i] for i in range(0, len(levels) - 1, own.order)])[:-1]
    end = CLEAN
    if levels and levels[-1] > 0:
        end = schedule.at_log_snr(-2.0 * math.log(levels[-1]))
    elif float(getattr(own, "final_alpha_cumprod", 1.0)) < 1:
        end = schedule.at(0)
    return [*times, end if end.log_snr > times[-1].log_snr else CLEAN]
