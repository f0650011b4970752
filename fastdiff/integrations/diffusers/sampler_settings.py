"""What `Sampler` needs of a diffusers scheduler's configuration, to use one of fastdiff's solvers.

The configuration describes the model: betas, prediction type, clip, learned variance, the shift of
a flow. These become a `Schedule` and settings. The solver and its grid of times are fastdiff's, not
the scheduler's.
"""

from __future__ import annotations

from typing import Any

from ...schedule import Schedule
from ..networks import Adapter, FlowAdapter
from . import tables
from .conversion import from_scheduler


def sampler_settings(
    scheduler: Any, model: Adapter, *, solver: str
) -> tuple[Schedule, dict[str, Any]]:
    """Returns (schedule, settings) for `Sampler(model, schedule, **settings)`.

    Betas are diffusers' float32 ones in float64; a terminal SNR of zero is computed in float64 (Lin
    et al. 2024, algorithm 1).

    Raises:
        TypeError: for a scheduler that has no drop-in.
        ValueError: for a scheduler without betas that is no flow either.
    """
    drop_in = from_scheduler(scheduler)
    config = drop_in.config
    if isinstance(model, FlowAdapter):
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                "fastdiff.Sampler: expected a flow with a constant shift for solver=, got"
                " use_dynamic_shifting in the scheduler's config. Leave solver out."
            )
        shift = float(config.get("shift", config.get("flow_shift", 1.0)))
        schedule = Schedule.flow(config.num_train_timesteps, shift=shift)
        return schedule, {"prediction_type": model.parametrization}
    other_times = config.get("use_flow_sigmas") or config.get("timestep_type") == "continuous"
    if "beta_schedule" not in config or other_times or config.get("variance_type") == "learned":
        raise ValueError(
            "fastdiff.Sampler: expected a scheduler of betas and whole timesteps, or of a flow,"
            f" for solver=, got {type(scheduler).__name__}. Leave solver out to run the"
            " scheduler's own steps."
        )
    betas = tables.betas({**config, "rescale_betas_zero_snr": False}, type(drop_in).__name__)
    schedule = Schedule.from_betas(betas.double().numpy())
    if config.get("rescale_betas_zero_snr"):
        schedule = schedule.rescale_zero_terminal_snr()
    settings = {"prediction_type": config.prediction_type, **drop_in._limits()}
    if solver == "ddpm" and "variance_type" in config and config.variance_type is not None:
        settings["variance_type"] = config.variance_type.removesuffix("_log")
    return schedule, settings
