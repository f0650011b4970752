"""A diffusers scheduler's configuration for fastdiff's own solvers: a `Schedule`, and settings of
`Sampler`.

What the configuration says of the model is kept: betas, prediction type, clipping, learned
    variance, a flow's shift. The
solver and its grid of times are fastdiff's.
"""

from __future__ import annotations

from typing import Any

from ...schedule import Schedule
from ..networks import Adapter, FlowAdapter
from . import tables
from .twins import from_scheduler


def native(scheduler: Any, model: Adapter, *, solver: str) -> tuple[Schedule, dict[str, Any]]:
    """(schedule, settings) of `Sampler(model, schedule, **settings)`.

    Betas are diffusers' float32 ones, upcast; a terminal SNR of zero is made in float64 (Lin et al.
    2024, algorithm 1).

    Raises TypeError for schedulers without a twin, ValueError for those that are no schedule of
    betas and no flow.
    """
    twin = from_scheduler(scheduler)
    config = twin.config
    if isinstance(model, FlowAdapter):
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                "fastdiff.Sampler: expected a flow with a shift of its own for solver=, got"
                " use_dynamic_shifting in the scheduler's config. Leave solver out."
            )
        shift = float(config.get("shift", config.get("flow_shift", 1.0)))
        schedule = Schedule.flow(config.num_train_timesteps, shift=shift)
        return schedule, {"prediction_type": model.parametrization}
    told_otherwise = config.get("use_flow_sigmas") or config.get("timestep_type") == "continuous"
    if "beta_schedule" not in config or told_otherwise or config.get("variance_type") == "learned":
        raise ValueError(
            "fastdiff.Sampler: expected a scheduler of betas and whole timesteps, or of a flow,"
            f" for solver=, got {type(scheduler).__name__}. Leave solver out, and the scheduler's"
            " own steps are taken."
        )
    betas = tables.betas({**config, "rescale_betas_zero_snr": False}, type(twin).__name__)
    schedule = Schedule.from_betas(betas.double().numpy())
    if config.get("rescale_betas_zero_snr"):
        schedule = schedule.rescale_zero_terminal_snr()
    settings = {"prediction_type": config.prediction_type, **twin._limits()}
    if solver == "ddpm" and "variance_type" in config and config.variance_type is not None:
        settings["variance_type"] = config.variance_type.removesuffix("_log")
    return schedule, settings
