"""The settings of a sampler: their types, their defaults, and those of a folder with overrides.

`PlanSettings` and `SamplerSettings` are what type checkers know of them. Tests compare them with
the parameters of `make_plan` and `Sampler` and with the options of all solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch

from ..prediction import Parametrization
from ..schedule import Time
from ..solvers import SOLVERS, Plan, find, resolve

DEFAULT_SOLVER = "dpm++2m"  # docs/choosing.md, "The defaults"


class SolverOptions(TypedDict, total=False):
    """The options of all solvers. Each solver has some, and refuses others."""

    as_published: bool
    c2: float
    c3: float
    clock: str
    corrector_order: int
    data_variance: float | None
    disable_corrector: Sequence[int]
    eta: float | None
    gamma: float
    improved_start: bool
    jump_length: int
    jump_n_sample: int
    lower_order_final: bool
    nested: bool
    noise_level: float
    order: int
    pece: bool
    phi: float | Callable[[float], float] | None
    predict_x0: bool
    predictor_order: int
    r: float
    r1: float
    r2: float
    runge_kutta: bool
    s_churn: float
    s_noise: float
    s_tmax: float
    s_tmin: float
    sigma_data: float
    solver_type: str
    tableau: Any
    tau: float | Callable[[Time], float]
    tau_max: float
    tau_min: float
    timestep_scaling: float
    use_clipped_model_output: bool
    variable: str
    variance_type: str


class PlanSettings(SolverOptions, total=False):
    """What a plan is made from; `plan_settings` has the defaults."""

    solver: str
    steps: int
    prediction_type: str | Parametrization
    clip_range: float | None
    timestep_spacing: str
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None
    dynamic_threshold: float | None
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    guidance_type: str
    zero_init_steps: int | None
    apg_eta: float | None
    apg_norm: float | None
    apg_momentum: float | None
    apg_space: str | None
    sde_rows: tuple[int, int] | None


class SamplerSettings(PlanSettings, total=False):
    """The keyword arguments of `Sampler`."""

    plan: Plan | None
    guidance_scale: float | Sequence[float]
    guide: Any
    network_batch: int | None
    on_oom: str
    graph: bool | str
    compile: bool | Mapping[str, Any]
    network_dtype: torch.dtype | None
    channels_last: bool
    decode: Any


OF_RUNS = SamplerSettings.__annotations__.keys() - PlanSettings.__annotations__.keys() - {"plan"}
"""The settings of a sampler that a plan is not made from."""


def plan_settings(
    *,
    solver: str = DEFAULT_SOLVER,
    steps: int = 25,
    prediction_type: Any = "epsilon",
    clip_range: float | None = None,
    timestep_spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
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

    Names of other libraries become fastdiff's (`fastdiff.solvers.aliases`). Later settings are left
    out where they change nothing, so that the config.json of a sampler without them stays the same.
    """
    given = options if eta is None else {**options, "eta": eta}
    solver, options, timestep_spacing = resolve(solver, given, timestep_spacing)
    eta = options.pop("eta", None)
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


def beside_a_plan(plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a ready plan can't have: all but those that are None, and an eta of 0,
    which every solver accepts, where the plan draws no noise.
    """
    return {
        name: value
        for name, value in settings.items()
        if not (value is None and name in PlanSettings.__annotations__)
        and not (name == "eta" and _zero(value) and not plan.stochastic)
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
