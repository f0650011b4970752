"""Makes plans: checks the request, chooses the grid and traces the solver's formula over it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..nearest import nearest
from ..prediction import PREDICTION_TYPES, Parametrization, normalize
from ..schedule import Schedule, Time
from .grids import grid, of_levels, of_timesteps
from .guidance_kinds import guidance_kind
from .options import CLIP, INTERVAL, POSITIVE, RATIO, SHARE, shown
from .plan import Plan
from .registry import find, resolve
from .trace import Trace
from .windows import WINDOW, join, quiet

# what other libraries call a setting of Sampler, and what to do instead
OTHER_NAMES = {
    "cfg_scale": "Pass guidance_scale.",
    "device": "Move the network to its device; the sampler follows it.",
    "dtype": "Pass network_dtype, or convert the network.",
    "generator": "Pass seed to sample.",
    "num_inference_steps": "Pass steps.",
    "num_steps": "Pass steps.",
    "sampler": "Pass solver.",
    "scheduler": "Pass solver and timestep_spacing.",
    "seed": "Pass seed to sample.",
    "sigma_schedule": "Pass timestep_spacing.",
}
# settings of a Sampler that are none of a plan, for a suggestion
OF_SAMPLER = (
    "channels_last",
    "compile",
    "decode",
    "eta",
    "graph",
    "guidance_scale",
    "guide",
    "network_batch",
    "network_dtype",
    "on_oom",
    "plan",
)


def make_plan(
    schedule: Schedule,
    *,
    solver: str,
    steps: int,
    prediction_type: str | Parametrization = "epsilon",
    clip_range: float | None = None,
    timestep_spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    dynamic_threshold: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_type: str = "cfg",
    zero_init_steps: int | None = None,
    apg_eta: float | None = None,
    apg_norm: float | None = None,
    apg_momentum: float | None = None,
    apg_space: str | None = None,
    sde_rows: tuple[int, int] | None = None,
    times: Sequence[Time] | None = None,
    **options: Any,
) -> Plan:
    """Returns the plan of a solver over a grid of times.

    Args:
        schedule: alpha and sigma over time.
        solver: name of a registered solver, or an alias (`fastdiff.solvers.aliases`).
        steps: number of times of the grid; ignored where timesteps, sigmas or times is passed, of
            which one is passed at most.
        timesteps: descending timesteps in [0, T) to visit instead of a grid; the last step goes
            from the last of them to clean data.
        sigmas: descending noise levels to visit instead: sigma/alpha, or sigma of a flow schedule.
        times: points from noise to data to visit instead, with clean data only where it is listed.
        timestep_spacing: name of the grid (`fastdiff.solvers.grids`), or an alias. Where the
            solver's name has a grid in it, that one.
        options: of the solver.

    The other arguments are those of `fastdiff.Sampler`.

    Raises ValueError for an unknown solver, prediction type, spacing or option, for steps outside
    [1, T], for timesteps or sigmas that do not descend or lie outside their range, for numbers
    outside their ranges, and where the solver or the prediction type is undefined at the first
    point of the grid.
    """
    solver, options, timestep_spacing = resolve(solver, options, timestep_spacing)
    chosen = find(solver)
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        known = [*chosen.options, *inspect.signature(make_plan).parameters, *OF_SAMPLER]
        raise ValueError(
            f"fastdiff.Sampler: solver {solver!r} takes the options {sorted(chosen.options)}, got"
            f" {unknown[0]!r}.{nearest(unknown[0], known, OTHER_NAMES)}"
        )
    clip_range = CLIP.check("clip_range", clip_range)
    prediction_type = _parametrization(prediction_type)
    dynamic_threshold = RATIO.check("dynamic_threshold", dynamic_threshold)
    if dynamic_threshold is not None and clip_range is not None and clip_range < 1:
        raise ValueError(
            "fastdiff.Sampler: expected dynamic_threshold in (0, 1] and clip_range >= 1 with it,"
            f" got {dynamic_threshold!r} and {clip_range!r}."
        )
    guidance_rescale = SHARE.check("guidance_rescale", guidance_rescale)
    INTERVAL.check("guidance_interval", guidance_interval)
    kind = guidance_kind(
        guidance_type,
        zero_init_steps=zero_init_steps,
        apg_eta=apg_eta,
        apg_norm=apg_norm,
        apg_momentum=apg_momentum,
        apg_space=apg_space,
    )
    window = WINDOW.check("sde_rows", sde_rows)
    if timesteps is not None:
        times = of_timesteps(schedule, timesteps)
    elif sigmas is not None:
        times = of_levels(schedule, sigmas)
    elif times is None:
        times = grid(schedule, steps, timestep_spacing)
    steps = len(times) - 1
    if chosen.reverse:
        times = list(reversed(times))
    settings: dict[str, Any] = {
        "clip_range": clip_range,
        "dynamic_threshold": dynamic_threshold,
        "guidance_rescale": guidance_rescale,
        "guidance_interval": guidance_interval,
        "renoise_uncond": guidance_type == "cfg++",
    }
    trace = Trace(prediction_type, schedule, **settings)
    try:
        with np.errstate(all="ignore"):  # the plan refuses what is not finite
            trace.finish(chosen.formula(trace, times, **options))
            if window is not None:
                still = Trace(prediction_type, schedule, **settings)
                still.finish(chosen.formula(still, times, **quiet(chosen, options)))
                join(chosen, options, trace, still, window)
            table = trace.table()
            kind.write(table)
    except (ArithmeticError, ValueError) as error:
        if str(error).startswith("fastdiff"):
            raise
        if isinstance(error, ZeroDivisionError) and any(t.alpha == 0 for t in times):
            raise ValueError(
                "fastdiff.Sampler: expected a start with some data in it (alpha > 0) for the solver"
                f" {solver!r}, got pure noise. Use another solver, or timesteps or sigmas that"
                " begin later."
            ) from None
        raise ValueError(
            "fastdiff.Sampler: expected options and points with finite coefficients for the solver"
            f" {solver!r}, got others ({error}). Use other options, or timesteps or sigmas that"
            " differ more from step to step."
        ) from None
    chosen_options = {
        name: repr(v) if callable(v) else v for name, v in (chosen.options | options).items()
    }
    info = {"solver": solver, **chosen_options, "steps": int(steps)}
    info["prediction_type"] = prediction_type.prediction_type
    if prediction_type.unit_input:
        info |= {"unit_input": True, "sigma_data": prediction_type.sigma_data}
    info |= {
        "clip_range": clip_range,
        "timestep_spacing": timestep_spacing,
        "schedule": repr(schedule),
    }
    info |= {"dynamic_threshold": dynamic_threshold, "guidance_rescale": guidance_rescale or None}
    info |= {
        "guidance_interval": guidance_interval,
        "timesteps": None if timesteps is None else list(timesteps),
    }
    if sigmas is not None:
        info["sigmas"] = [float(v) for v in sigmas]
    info |= kind.info
    if window is not None:
        info["sde_rows"] = list(window)
    return Plan(
        table,
        info,
        initial_std=1.0 if chosen.reverse else schedule.prior_std(times[0]),
        levels=trace.levels(times[-1]),
        whole_times=schedule.whole_times,
    )


def _parametrization(given: Any) -> Parametrization:
    """The parametrization of a prediction type's name, or a checked one. Raises ValueError."""
    if isinstance(given, str):
        return Parametrization(normalize(given))
    if not isinstance(given, Parametrization) or not isinstance(given.prediction_type, str):
        raise ValueError(
            f"fastdiff.Sampler: expected prediction_type in {list(PREDICTION_TYPES)} or a"
            f" Parametrization, got {shown(given)}."
        )
    if given.unit_input:
        POSITIVE.check("sigma_data", given.sigma_data)
    return given
