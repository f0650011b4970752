"""Configurations of `fastdiff.Scheduler`, and of diffusers' schedulers that become one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...solvers.registry import DEFAULT_SPACING, find, resolve
from . import members
from .base import DROP_INS

_OF_GRID = {  # values of diffusers' configurations that choose a grid
    "timestep_spacing",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
}


def arguments_of(config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Scheduler` for a configuration and options, which are taken from `options`.

    Args:
        config: of a `Scheduler` or of one of diffusers' schedulers.
        options: solver, grid, options of the solver, sde_rows, and values of the configuration to
            replace. What is none of these stays in it.

    Raises TypeError or ValueError for no configuration, and for one without a solver or a class.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            "fastdiff.Scheduler.from_config: expected a scheduler's config, got"
            f" {type(config).__name__}. Pass pipe.scheduler.config, or use from_pretrained."
        )
    for unread in sorted(_OF_GRID & options.keys()):
        raise ValueError(
            f"fastdiff.Scheduler.from_config: expected no {unread}, which a grid of fastdiff's does"
            f" not read, got {options[unread]!r}. Pass grid=, such as 'karras' or 'leading'."
        )
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    name = options.pop("like", None) or values.pop("like", None) or config.get("_class_name")
    values.pop("like", None)
    solver, grid = values.pop("solver", None), values.pop("grid", None)
    of_solver = dict(values.pop("solver_options", None) or {})
    if options.get("solver") not in (None, solver):
        of_solver = {}  # they are another solver's
    solver, grid = options.pop("solver", solver), options.pop("grid", grid)
    if solver is None:
        raise ValueError(
            "fastdiff.Scheduler.from_config: expected the name of a solver, got none. Pass solver=."
        )
    known = {*find(solver).options, "sde_rows"}
    of_solver |= options.pop("solver_options", None) or {}
    of_solver |= {k: options.pop(k) for k in list(options) if k in known}
    spacing = DEFAULT_SPACING if grid is None else grid
    solver, of_solver, spacing = resolve(solver, of_solver, spacing)
    if grid is not None or spacing != DEFAULT_SPACING:
        grid = spacing
    name = str(name) if name is not None else _class_of(values)
    own = members.original(name)
    if own is not None:  # a configuration may leave out what was a default
        parameters = inspect.signature(own).parameters.items()
        values = {**{k: p.default for k, p in parameters if p.default is not p.empty}, **values}
    replaceable = {*values, "prediction_type"}
    values |= {k: options.pop(k) for k in list(options) if k in replaceable}
    return {"like": name, "solver": solver, "grid": grid, "solver_options": of_solver, **values}


def refuse(method: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for options of diffusers' classes that are not zero, False or None."""
    for name, value in options.items():
        if value is not None and (isinstance(value, Tensor) or value):
            raise ValueError(
                f"fastdiff.Scheduler.{method}: expected no {name}, got {name} of type"
                f" {type(value).__name__}. Pass the solver's options to Scheduler.like."
            )


def _class_of(config: Mapping[str, Any]) -> str:
    """The class of diffusers with these keys, for a configuration without a name."""
    for name in DROP_INS:
        cls = members.original(name)
        if cls is not None and set(inspect.signature(cls).parameters) == set(config):
            return name
    raise ValueError(
        "fastdiff.Scheduler.from_config: expected a configuration that names its class, got"
        f" {sorted(config)[:3]} and so on. Pass like=, or use Scheduler.like."
    )
