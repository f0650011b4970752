"""What a diffusers scheduler's configuration says about its network, for one of fastdiff's solvers.

The configuration describes the model: betas or the shift of a flow or EDM's levels, the prediction
type, clip and threshold, learned variance. These become a `Schedule` and settings. The solver and
its grid of times are fastdiff's. `fastdiff.Scheduler`, `Sampler.from_diffusers` and jobs use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...prediction import Coefficients, Parametrization, normalize
from ...sampling.plans import Retimed
from ...schedule import Schedule, Time
from ..networks import Adapter, FlowAdapter
from . import tables
from .base import DROP_INS, DropIn
from .conversion import from_scheduler

FLOWS = (
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
)
"""diffusers' schedulers of flows; others are of a flow with use_flow_sigmas."""

_ROUNDED = 1e-4  # a float32 time that is whole but for its rounding


class Negated(Parametrization):
    """The parametrization of a network that returns minus the output of its prediction type."""

    def at(self, alpha: float, sigma: float) -> Coefficients:
        c = super().at(alpha, sigma)
        return c._replace(x0_out=-c.x0_out, eps_out=-c.eps_out)


class Trained(NamedTuple):
    """The network of a configuration: what it was trained on, gets and returns.

    Attributes:
        kind: `vp` for betas and timesteps, `flow`, or `edm` for levels of x0 + sigma eps.
        schedule: alpha and sigma over time.
        parametrization: what the network gets and returns.
        limits: clip_range and dynamic_threshold, where the configuration has them.
        clock: the time that pipelines iterate over at a point: `timestep`; `sigma`, times the
            number of training timesteps; `floored`, the same without its fraction, as diffusers'
            classes with use_flow_sigmas have it; `unshifted`, that of the flow before its shift;
            `log`, ln(sigma)/4; or `angle`, (2/pi) atan(sigma).
        inverted: whether a flow's time goes from 0 at noise to 1.
        std: the deviation that pipelines give the first state.
    """

    kind: str
    schedule: Schedule
    parametrization: Parametrization
    limits: dict[str, Any]
    clock: str
    inverted: bool = False
    std: float = 1.0

    def network_time(self, point: Time) -> float:
        """The time that pipelines iterate over at a point."""
        if self.clock == "timestep":
            return self.schedule.network_time(point)
        if self.clock == "log":
            return 0.25 * math.log(point.rho)
        if self.clock == "angle":
            return math.atan(point.rho) / math.pi * 2
        total = self.schedule.num_train_timesteps
        if self.clock == "unshifted":
            return point.t - self.schedule.origin
        weight = point.alpha if self.inverted else point.sigma
        time = total * weight / (point.alpha + point.sigma)
        return float(math.floor(time + _ROUNDED)) if self.clock == "floored" else time

    @property
    def points(self) -> Any:
        """The schedule with the pipelines' times, as `make_plan` takes it."""
        return self.schedule if self.clock == "timestep" else Retimed(self.schedule, self)


def trained(
    where: str, name: str, config: Mapping[str, Any], *, mu: float | None = None
) -> Trained:
    """The network that a scheduler's class and configuration describe.

    Betas are diffusers' float32 ones in float64; a terminal SNR of zero is computed in float64 (Lin
    et al. 2024, algorithm 1).

    Args:
        where: the caller, as errors name it.
        name: of diffusers' class.
        mu: of a flow with use_dynamic_shifting: the logarithm of its shift, or the shift itself
            with time_shift_type="linear".

    Raises ValueError for a class of another kind, and where mu is missing.
    """
    limits = _limits(name, config)
    if config.get("use_flow_sigmas") or name in FLOWS:
        return _flow(where, config, limits, mu)
    kind = normalize(config.get("prediction_type", "epsilon").removeprefix("original_"))
    if "sigma_schedule" in config:
        kinds = {"epsilon": "edm", "edm": "edm", "v": "v"}
        if kind in kinds:
            parametrization = Parametrization(kinds[kind], True, float(config["sigma_data"]))
            clock = "angle" if name.startswith("Cosine") else "log"
            return _levels(
                config, limits, config["sigma_min"], config["sigma_max"], parametrization, clock
            )
    if "beta_schedule" in config and config.get("variance_type") != "learned":
        betas = tables.betas({**config, "rescale_betas_zero_snr": False}, where)
        schedule = Schedule.from_betas(betas.double().numpy())
        if config.get("timestep_type") == "continuous" and kind == "v":
            ends = (math.exp(-0.5 * float(schedule.log_snr[i])) for i in (0, -1))
            low, high = (
                end if config.get(key) is None else config[key]
                for key, end in zip(("sigma_min", "sigma_max"), ends, strict=True)
            )
            return _levels(config, limits, low, high, Parametrization("v", True, 1.0), "log")
        if config.get("snr_shift_scale", 1.0) != 1.0:
            # alpha²/(k + (1 - k) alpha²) divides the signal-to-noise ratio by k
            schedule = Schedule.learned(schedule.log_snr - math.log(config["snr_shift_scale"]))
        if config.get("rescale_betas_zero_snr"):
            schedule = schedule.rescale_zero_terminal_snr()
        return Trained("vp", schedule, Parametrization(kind), limits, "timestep")
    raise ValueError(
        f"fastdiff.{where}: expected a scheduler of betas, of a flow or of EDM's levels, for a"
        f" solver of fastdiff's, got {name} with prediction_type {kind!r} and variance_type"
        f" {config.get('variance_type')!r}. Leave solver out to run the scheduler's own steps."
    )


def _limits(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of x0 that diffusers' class has; without a drop-in, those of most classes."""
    limits = DROP_INS.get(name, DropIn)._limits_of(config)
    return {**limits, "clip_range": float(limits["clip_range"])} if limits else {}


def _flow(
    where: str, config: Mapping[str, Any], limits: dict[str, Any], mu: float | None
) -> Trained:
    shift = config.get("flow_shift" if config.get("use_flow_sigmas") else "shift") or 1.0
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError(
                f"fastdiff.{where}: expected mu with use_dynamic_shifting=True, got None. Pass mu=,"
                " which pipelines compute from the size of the image."
            )
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    kind = normalize(config.get("prediction_type", "flow"))
    inverted = bool(config.get("invert_sigmas"))
    parametrization = Negated(kind) if inverted else Parametrization(kind)
    schedule = Schedule.flow(config["num_train_timesteps"], shift=float(shift))
    clock = "floored" if config.get("use_flow_sigmas") else "sigma"
    return Trained("flow", schedule, parametrization, limits, clock, inverted)


def _levels(
    config: Mapping[str, Any],
    limits: dict[str, Any],
    low: float,
    high: float,
    parametrization: Parametrization,
    clock: str,
) -> Trained:
    """The network of x0 + sigma eps with sigma between two levels."""
    schedule = Schedule.karras(
        config["num_train_timesteps"],
        sigma_min=float(low),
        sigma_max=float(high),
        rho=float(config.get("rho", 7.0)),
    )
    # diffusers adds the variance of unit data to the first level's
    std = math.hypot(float(high), 1.0)
    return Trained("edm", schedule, parametrization, limits, clock, std=std)


def variance_type(config: Mapping[str, Any]) -> dict[str, str]:
    """The option of the solver `ddpm` that a configuration has."""
    kind = config.get("variance_type")
    return {} if kind is None else {"variance_type": kind.removesuffix("_log")}


def sampler_settings(
    scheduler: Any, model: Adapter, *, solver: str
) -> tuple[Schedule, dict[str, Any]]:
    """Returns (schedule, settings) for `Sampler(model, schedule, **settings)`.

    Raises:
        TypeError: for a scheduler that has no drop-in.
        ValueError: for a scheduler that is not of betas and whole timesteps or of a flow with a
            constant shift; `Scheduler` serves others.
    """
    drop_in = from_scheduler(scheduler)
    config, flow = drop_in.config, isinstance(model, FlowAdapter)
    known = trained("Sampler", type(scheduler).__name__, config)
    if known.inverted or known.kind != ("flow" if flow else "vp"):
        raise ValueError(
            "fastdiff.Sampler: expected a scheduler of betas and whole timesteps, or of a flow,"
            f" for solver=, got {type(scheduler).__name__}. Leave solver out to run the"
            " scheduler's own steps."
        )
    if isinstance(model, FlowAdapter):
        return known.schedule, {"prediction_type": model.parametrization}
    settings = {"prediction_type": known.parametrization.prediction_type, **known.limits}
    return known.schedule, {**settings, **(variance_type(config) if solver == "ddpm" else {})}
