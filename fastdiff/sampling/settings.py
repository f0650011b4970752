"""The settings of a sampler's plan: their defaults, and those of a folder with overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..prediction import Parametrization
from ..solvers import SOLVERS, find

DEFAULT_SOLVER = "dpm++2m"  # docs/choosing.md, "The defaults"


def plan_settings(
    *,
    solver: str = DEFAULT_SOLVER,
    steps: int = 25,
    prediction_type: Any = "epsilon",
    clip_range: float | None = None,
    timestep_spacing: str = "trailing",
    timesteps: Sequence[int] | None = None,
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
    eta: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of `make_plan` with all defaults.

    Later settings are left out where they change nothing, so that the config.json of a sampler
    without them stays the same.
    """
    if eta is not None and not (_zero(eta) and _zero(find(solver).options.get("eta", 0.0))):
        options["eta"] = eta
    further = {
        "timesteps": timesteps,
        "dynamic_threshold": dynamic_threshold,
        "guidance_rescale": None if _zero(guidance_rescale) else guidance_rescale,
        "guidance_interval": guidance_interval,
        "guidance_type": None if _is_cfg(guidance_type) else guidance_type,
        "sde_rows": sde_rows,
        "zero_init_steps": zero_init_steps,
        "apg_eta": apg_eta,
        "apg_norm": apg_norm,
        "apg_momentum": apg_momentum,
        "apg_space": apg_space,
    }
    return {
        "solver": solver,
        "steps": steps,
        "prediction_type": prediction_type,
        "clip_range": clip_range,
        "timestep_spacing": timestep_spacing,
        **options,
        **{name: value for name, value in further.items() if value is not None},
    }


def _is_cfg(value: Any) -> bool:
    """Returns whether a setting is the usual guidance; what is no name is refused later."""
    return isinstance(value, str) and value == "cfg"


def _zero(value: Any) -> bool:
    """Returns whether a setting is the number 0 or False; what is no number is refused later."""
    return isinstance(value, (int, float)) and value == 0


def merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's settings as a folder stores them, with some replaced by `overrides`.

    If `overrides` names another solver, options that it does not have are left out, and sde_rows if
    its noise can't be turned off. If it has `steps`, the folder's timesteps and sigmas are.

    Raises ValueError for an unknown solver.
    """
    settings = dict(settings)
    if "unit_input" in settings:
        names = Parametrization._fields
        kind = Parametrization(**{name: settings.pop(name) for name in names if name in settings})
        settings["prediction_type"] = kind
    solver = find(overrides.get("solver", settings.get("solver", DEFAULT_SOLVER)))
    others = {option for other in SOLVERS.values() for option in other.options} - set(
        solver.options
    )
    if not solver.noiseless:
        others.add("sde_rows")
    if "steps" in overrides:
        others |= {"timesteps", "sigmas"}
    return {**{k: v for k, v in settings.items() if k not in others}, **overrides}
