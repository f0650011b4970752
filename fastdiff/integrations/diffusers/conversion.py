"""Conversion of diffusers' schedulers to drop-ins, one at a time or all of a pipeline."""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any, TypeVar

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from . import members
from .base import DROP_INS

SUPPORTED = ("0.42", "0.43")
"""The first supported version of diffusers, and the first that is not; the tests use 0.42.1."""

# Schedulers without a drop-in, and the drop-in with the nearest algorithm (not the nearest name).
_NEAREST = {
    "ConsistencyDecoderScheduler": "CMStochasticIterativeScheduler",
    "HeliosDMDScheduler": "FlowMatchLCMScheduler",
    "HeliosScheduler": "UniPCMultistepScheduler",
    "KarrasVeScheduler": "HeunDiscreteScheduler",
    "PiflowScheduler": "FlowMatchEulerDiscreteScheduler",
    "ScoreSdeVeScheduler": "EulerAncestralDiscreteScheduler",
    "ScoreSdeVpScheduler": "DDPMScheduler",
}
_SAMPLE_TOKENS = (
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "RFD4ProteinaScheduler",
    "VQDiffusionScheduler",
)


Pipeline = TypeVar("Pipeline")


def check_version() -> None:
    """Warns where the installed diffusers is not a supported version."""
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    low, high = (tuple(int(part) for part in bound.split(".")) for bound in SUPPORTED)
    if not low <= version < high:
        warnings.warn(
            f"fastdiff: expected diffusers >= {SUPPORTED[0]} and < {SUPPORTED[1]}, whose schedulers"
            f" the drop-ins equal, got {diffusers.__version__}.",
            stacklevel=2,
        )


def from_scheduler(scheduler: Any) -> Any:
    """Returns the drop-in for one of diffusers' schedulers, with its current configuration.

    Its timesteps are not copied. A drop-in is returned as it is.

    Raises:
        TypeError: for another class; the message names the nearest supported one.
    """
    name, package = type(scheduler).__name__, type(scheduler).__module__.split(".")[0]
    if package == "fastdiff":
        return scheduler
    cls: Any = DROP_INS.get(name) if package == "diffusers" else None
    if cls is None:
        raise TypeError(
            "fastdiff.from_scheduler: expected a scheduler of diffusers that has a drop-in, got"
            f" {name}. {_nearest(name)}"
        )
    # A pipeline may have rewritten values that were defaults. All values are passed, and those that
    # are still a default are marked as such.
    config = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    defaults = {k: p.default for k, p in inspect.signature(cls.__init__).parameters.items()}
    unchanged = [
        k for k in scheduler.config.get("_use_default_values", []) if config[k] == defaults.get(k)
    ]
    drop_in = cls.from_config(config)
    drop_in.register_to_config(**config, _use_default_values=unchanged)
    return drop_in


def _nearest(name: str) -> str:
    if name in _SAMPLE_TOKENS:
        return "It samples tokens, which no supported one does."
    similar = difflib.get_close_matches(name, sorted(DROP_INS), n=1, cutoff=0.0)
    near = _NEAREST.get(name) or next(iter(similar), "DDIMScheduler")
    return f"The nearest supported one is {near}."


def swap(pipeline: Pipeline) -> Pipeline:
    """Replaces the schedulers of a diffusers pipeline by drop-ins, in place, and returns it.

    They are assigned to the finished pipeline, because some constructors, such as DDIMPipeline's,
    create a scheduler themselves.

    Raises:
        TypeError: for what is no pipeline, for a scheduler without a drop-in, and for a pipeline
            whose source touches a member of its scheduler that the drop-in lacks. The pipeline then
            is as before.
    """
    components = getattr(pipeline, "components", None)
    if not isinstance(components, dict):
        raise TypeError(
            "fastdiff.swap: expected a diffusers pipeline, got"
            f" {type(pipeline).__name__}. For a scheduler alone, see fastdiff.from_scheduler."
        )
    replacements = {}
    for name, component in components.items():
        if isinstance(component, SchedulerMixin):
            drop_in = replacements[name] = from_scheduler(component)
            lacking = members.missing(pipeline, drop_in, component)
            if lacking:
                raise TypeError(
                    f"fastdiff.swap: expected a pipeline that a drop-in can serve, got"
                    f" {type(pipeline).__name__}, which uses {' and '.join(lacking)} of its"
                    f" {type(component).__name__}. Keep diffusers' scheduler there."
                )
    for name, drop_in in replacements.items():
        setattr(pipeline, name, drop_in)
    return pipeline
