"""The list of solvers: each is one formula, registered under its name with its paper."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..prediction import Parametrization, normalize
from ..schedule import Schedule, Time
from .grids import given, given_levels, grid
from .plan import Plan
from .trace import Linear, Trace

Formula = Callable[..., Linear]


class Solver(NamedTuple):
    """A registered solver: formula(trace, times, **options) -> the last x."""

    name: str
    formula: Formula
    paper: str
    order: int  # of convergence for smooth problems, the weak order of stochastic ones
    calls: int  # network calls a step
    stochastic: bool
    reverse: bool = False  # runs from data to noise

    @property
    def options(self) -> dict[str, Any]:
        """Option names with their defaults: the formula's keyword-only parameters."""
        parameters = inspect.signature(self.formula).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


SOLVERS: dict[str, Solver] = {}


def solver(
    name: str,
    *,
    paper: str,
    order: int = 1,
    calls: int = 1,
    stochastic: bool = False,
    reverse: bool = False,
) -> Callable[[Formula], Formula]:
    """Registers a formula under a public name."""

    def register(formula: Formula) -> Formula:
        SOLVERS[name] = Solver(name, formula, paper, order, calls, stochastic, reverse)
        return formula

    return register


def find(name: str) -> Solver:
    """The solver of this name. Raises ValueError with the known names."""
    if name not in SOLVERS:
        raise ValueError(f"fastdiff.Sampler: expected solver in {sorted(SOLVERS)}, got {name!r}.")
    return SOLVERS[name]


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
    times: Sequence[Time] | None = None,
    **options: Any,
) -> Plan:
    """Traces a solver over a grid of `steps` times of the schedule.

    timesteps: descending timesteps to visit instead (`steps` is then their number); sigmas:
        descending noise levels
    sigma/alpha (flow schedules: sigma) to visit instead; times: points from noise to data instead
    of all of them, clean
    data included where the solver should go there. Further arguments: see `Sampler`.

    Raises ValueError for an unknown solver, prediction type, spacing or option, steps outside [1,
    T], timesteps that do not descend within [0, T), sigmas that do not descend, numbers outside
    their ranges, and solvers and prediction types that cannot start where the grid does.
    """
    chosen = find(solver)
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        raise ValueError(
            f"fastdiff.Sampler: solver {solver!r} takes the options {sorted(chosen.options)}, got"
            f" {unknown[0]!r}."
        )
    if clip_range is not None and not 0 < clip_range < float("inf"):
        raise ValueError(f"fastdiff.Sampler: expected clip_range > 0 or None, got {clip_range!r}.")
    if isinstance(prediction_type, str):
        prediction_type = Parametrization(normalize(prediction_type))
    if dynamic_threshold is not None and not (
        0 < dynamic_threshold <= 1 and (clip_range is None or clip_range >= 1)
    ):
        raise ValueError(
            "fastdiff.Sampler: expected dynamic_threshold in (0, 1] and clip_range >= 1 with it,"
            f" got {dynamic_threshold!r} and {clip_range!r}."
        )
    if not 0 <= guidance_rescale <= 1:
        raise ValueError(
            f"fastdiff.Sampler: expected guidance_rescale in [0, 1], got {guidance_rescale!r}."
        )
    if guidance_interval is not None and not 0 <= guidance_interval[0] <= guidance_interval[1]:
        raise ValueError(
            "fastdiff.Sampler: expected guidance_interval (low, high) of sigmas, got"
            f" {guidance_interval!r}."
        )
    if timesteps is not None:
        times = given(schedule, timesteps)
    elif sigmas is not None:
        times = given_levels(schedule, sigmas)
    elif times is None:
        times = grid(schedule, steps, timestep_spacing)
    steps = len(times) - 1
    if chosen.reverse:
        times = list(reversed(times))
    trace = Trace(
        prediction_type,
        schedule,
        clip_range=clip_range,
        dynamic_threshold=dynamic_threshold,
        guidance_rescale=guidance_rescale,
        guidance_interval=guidance_interval,
    )
    try:
        table = trace.table(chosen.formula(trace, times, **options))
    except ZeroDivisionError:
        raise ValueError(
            "fastdiff.Sampler: expected a start with some data in it (alpha > 0) for the solver"
            f" {solver!r}, got pure noise. Use another solver, or timesteps or sigmas that begin"
            " later."
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
    return Plan(
        table,
        info,
        initial_std=1.0 if chosen.reverse else schedule.prior_std(times[0]),
        levels=trace.levels(times[-1]),
        whole_times=schedule.whole_times,
    )
