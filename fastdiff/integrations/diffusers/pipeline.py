"""The parts of a diffusers pipeline that `Sampler.from_diffusers` needs: network, plan and decoder.

The plan of a drop-in is its formula traced over the timesteps that it shows to pipelines, so
fastdiff's loop executes the pipeline's steps, quirks included. With a solver's name the plan is
that of `fastdiff.Scheduler`. The noise is fastdiff's.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

from torch import Tensor

from ...nearest import nearest
from ...sampling.settings import OF_RUNS, PlanSettings, beside_a_plan
from ...solvers import Plan
from ...solvers.build import OTHER_NAMES
from ...solvers.registry import find
from ...table import INDEX
from ..networks import Adapter, FlowAdapter, from_diffusers
from .conversion import from_scheduler
from .guiders import with_guidance, with_guider
from .scheduler import Scheduler

_CALL_ARGUMENTS = {
    "model_output",
    "timestep",
    "sample",
    "generator",
    "return_dict",
    "variance_noise",
    "per_token_timesteps",
    "prev_timestep",
    "original_image",
    "mask",
}


# arguments of `Sampler` that change the plan of a solver of fastdiff's
_GUIDANCE = (
    "guidance_rescale",
    "guidance_interval",
    "guidance_type",
    "zero_init_steps",
    "apg_eta",
    "apg_norm",
    "apg_momentum",
    "apg_space",
)
_NOT_OF_GRID = {"num_inference_steps", "device"}  # steps= and the network say them
_OF_PLAN = ("clip_range", "dynamic_threshold", "sde_rows", *_GUIDANCE)


def pictures(vae: Any, latents: Tensor) -> Tensor:
    """Decodes latents [B, C, …] with an autoencoder of diffusers.

    Their scaling, shift or statistics are undone first. Raises ValueError for packed latents.
    """
    config = vae.config
    if latents.ndim < 4:
        raise ValueError(
            f"fastdiff.Sampler: expected latents [B, C, H, W] to decode, got {list(latents.shape)}."
            " Leave decode= out and unpack them as the pipeline does."
        )
    scale, shift = (
        getattr(config, "scaling_factor", None) or 1.0,
        getattr(config, "shift_factor", None) or 0.0,
    )
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    latents = latents / scale
    if mean is not None and std is not None:
        across = (1, -1, *(1,) * (latents.ndim - 2))
        latents = latents * latents.new_tensor(std).view(across) + latents.new_tensor(mean).view(
            across
        )
    return vae.decode((latents + shift).to(vae.dtype)).sample


def network_and_plan(
    pipe: Any, *, steps: int | None = None, guider: Any = None, **settings: Any
) -> tuple[Adapter, Plan, dict[str, Any]]:
    """Returns the network, the plan and the settings that are not the scheduler's.

    Arguments and errors: see `Sampler.from_diffusers`.
    """
    where = "fastdiff.Sampler.from_diffusers"
    network = getattr(pipe, "unet", None)
    network = getattr(pipe, "transformer", None) if network is None else network
    if network is None or getattr(pipe, "scheduler", None) is None:
        raise TypeError(
            f"{where}: expected a pipeline with a scheduler and a unet or transformer, got"
            f" {type(pipe).__name__}."
        )
    solver, grid = settings.pop("solver", None), settings.pop("grid", None)
    if solver is None and not isinstance(pipe.scheduler, Scheduler):
        for name, value in (("grid", grid), ("sde_rows", settings.get("sde_rows"))):
            if value is not None:
                raise ValueError(
                    f"{where}: expected solver= with {name}=, got {value!r} alone. The steps of the"
                    " pipeline's own scheduler are its configuration's."
                )
    if solver is None and isinstance(pipe.scheduler, Scheduler):
        solver = pipe.scheduler.config.solver
        grid = pipe.scheduler.config.get("grid") if grid is None else grid
    if solver is None:
        scheduler = copy.deepcopy(from_scheduler(pipe.scheduler))
    else:
        of_solver = find(solver).options
        options = {k: settings.pop(k) for k in list(settings) if k in of_solver}
        scheduler = Scheduler.like(pipe.scheduler, solver=solver, grid=grid, **options)
    if getattr(scheduler, "_scale_factors", None):
        raise ValueError(
            f"{where}: expected no scale_factors: images that grow from step to step have no plan."
        )
    if scheduler.config.get("variance_type") == "learned":
        raise ValueError(
            f"{where}: expected variance_type other than 'learned'. Networks in use learn a range."
        )
    grid_names = set(inspect.signature(scheduler.set_timesteps).parameters) - _NOT_OF_GRID
    of_grid = {k: settings.pop(k) for k in list(settings) if k in grid_names}
    names = set(inspect.signature(scheduler.step).parameters) - _CALL_ARGUMENTS
    options = {k: settings.pop(k) for k in list(settings) if k in names}
    if steps is None and not {"timesteps", "sigmas"} & set(of_grid):
        steps = 25
    if steps is not None:
        of_grid["num_inference_steps"] = steps
    scheduler.set_timesteps(**of_grid)
    guidance = {k: settings.pop(k) for k in _GUIDANCE if k in settings}
    if guidance and guider is not None:
        raise ValueError(
            f"{where}: expected guider or {next(iter(guidance))}, got both. The guider has its own."
        )
    if isinstance(scheduler, Scheduler):
        options = guidance | {k: settings.pop(k) for k in _OF_PLAN if k in settings}
    plan = scheduler.plan(**options)
    if guidance and not isinstance(scheduler, Scheduler):
        plan = with_guidance(plan, **guidance)
    others = beside_a_plan(plan, {k: settings.pop(k) for k in list(settings) if k not in OF_RUNS})
    if others:
        known = {*OF_RUNS, *grid_names, *names, "solver", "grid", "steps", "guider"}
        known |= set(_GUIDANCE) if solver is None else {*_OF_PLAN, *find(solver).options}
        name = type(scheduler).__name__
        raise ValueError(
            f"{where}: expected settings of a Sampler's runs or of the steps of {name}, got"
            f" {min(others)!r}.{_advice(min(others), pipe.scheduler, solver, known)}"
        )
    learned = bool(plan.column("noise_mode").any())  # other plans do not read a learned variance
    model = from_diffusers(network, **({"channels": None} if learned else {}))
    count = scheduler.config.get("num_train_timesteps", 1000)
    plan = _network_times(plan, model, count)
    if guider is not None:
        if "guidance_scale" in settings:
            raise ValueError(
                f"{where}: expected guider or guidance_scale, got both. The guider has a strength."
            )
        plan, settings["guidance_scale"] = with_guider(plan, guider, scheduler.num_inference_steps)
    return model, plan, settings


def _advice(name: str, scheduler: Any, solver: str | None, known: set[str]) -> str:
    """What to do instead of passing this setting, as the last sentence of an error."""
    if name == "timestep_spacing" and solver is not None:
        return " Pass grid."
    if name in scheduler.config:
        return (
            " Change the scheduler's configuration: pipe.scheduler ="
            f" {type(scheduler).__name__}.from_config(pipe.scheduler.config, {name}=…)."
        )
    if name in PlanSettings.__annotations__:
        if solver is not None:
            return f" The solver {solver!r} has no such option."
        return " The pipeline's scheduler makes the steps. Pass solver= for those of a solver."
    return nearest(name, sorted(known), OTHER_NAMES)


def _network_times(plan: Plan, model: Adapter, timesteps: int) -> Plan:
    """The plan with the network's times, from those of a scheduler of so many timesteps."""
    if not isinstance(model, FlowAdapter):
        return plan
    scale, offset = model.time_scale / timesteps, model.time_offset
    if scale == 1.0 and not offset:
        return plan
    table = plan.table.copy()
    table[:, INDEX["t"]] = scale * table[:, INDEX["t"]] + offset
    return dataclasses.replace(plan, table=table)
