"""The list of solvers: each is one formula, registered under its name with its paper."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..prediction import normalize
from ..schedule import Schedule
from .grids import Time, grid
from .plan import Plan
from .trace import Linear, Trace

Formula = Callable[..., Linear]


class Solver(NamedTuple):
    """A registered solver: formula(trace, times, **options) -> the last x."""

    name: str
    formula: Formula
    paper: str
    order: int  # of convergence for smooth problems; 1 where nothing more is claimed
    calls: int  # network calls a step
    stochastic: bool

    @property
    def options(self) -> dict[str, Any]:
        """Option names with their defaults: the formula's keyword-only parameters."""
        parameters = inspect.signature(self.formula).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


SOLVERS: dict[str, Solver] = {}


def solver(
    name: str, *, paper: str, order: int = 1, calls: int = 1, stochastic: bool = False
) -> Callable[[Formula], Formula]:
    """Registers a formula under a public name."""

    def register(formula: Formula) -> Formula:
        SOLVERS[name] = Solver(name, formula, paper, order, calls, stochastic)
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
    prediction_type: str = "epsilon",
    clip_range: float | None = None,
    timestep_spacing: str = "trailing",
    times: Sequence[Time] | None = None,
    **options: Any,
) -> Plan:
    """Traces a solver over a grid of `steps` times of the schedule, or over `times` (from noise to data) instead.

    Raises ValueError for an unknown solver, prediction type, spacing or option, steps outside [1, T] and a clip_range
    that is not positive.
    """
    chosen = find(solver)
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        raise ValueError(
            f"fastdiff.Sampler: solver {solver!r} takes the options {sorted(chosen.options)}, got {unknown[0]!r}."
        )
    if clip_range is not None and not 0 < clip_range < float("inf"):
        raise ValueError(f"fastdiff.Sampler: expected clip_range > 0 or None, got {clip_range!r}.")
    kind = normalize(prediction_type)
    if times is None:
        times = grid(schedule, steps, timestep_spacing)
    trace = Trace(kind, clip_range, schedule)
    table = trace.table(chosen.formula(trace, times, **options))
    info = {"solver": solver, **chosen.options, **options, "steps": int(steps), "prediction_type": kind}
    info |= {"clip_range": clip_range, "timestep_spacing": timestep_spacing, "schedule": repr(schedule)}
    return Plan(table, info)
