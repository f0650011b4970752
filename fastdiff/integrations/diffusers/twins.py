"""From diffusers' schedulers to their twins here, one by one or in a pipeline."""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

SUPPORTED = (
    "0.42",
    "0.43",
)  # diffusers from the first, below the second; the tests run with 0.42.1

# classes without a twin whose sampler is close to one that has; names that look alike say nothing
# of it
_NEAREST = {
    "CogVideoXDDIMScheduler": "DDIMScheduler",
    "CogVideoXDPMScheduler": "DPMSolverMultistepScheduler",
    "ConsistencyDecoderScheduler": "CMStochasticIterativeScheduler",
    "DDPMWuerstchenScheduler": "DDPMScheduler",
    "FlowMapEulerDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
    "HeliosDMDScheduler": "FlowMatchLCMScheduler",
    "HeliosScheduler": "UniPCMultistepScheduler",
    "KarrasVeScheduler": "HeunDiscreteScheduler",
    "LTXEulerAncestralRFScheduler": "FlowMatchEulerDiscreteScheduler",
    "MiniMaxH3Scheduler": "FlowMatchEulerDiscreteScheduler",
    "PiflowScheduler": "FlowMatchEulerDiscreteScheduler",
    "SCMScheduler": "FlowMatchLCMScheduler",
    "ScoreSdeVeScheduler": "EulerAncestralDiscreteScheduler",
    "ScoreSdeVpScheduler": "DDPMScheduler",
}
_OF_TOKENS = (
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "RFD4ProteinaScheduler",
    "VQDiffusionScheduler",
)


def check_version() -> None:
    """Warns where diffusers is another than the supported ones."""
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    low, high = (tuple(int(part) for part in bound.split(".")) for bound in SUPPORTED)
    if not low <= version < high:
        warnings.warn(
            f"fastdiff: expected diffusers >= {SUPPORTED[0]} and < {SUPPORTED[1]}, whose schedulers"
            f" the drop-ins equal, got {diffusers.__version__}.",
            stacklevel=2,
        )


def from_scheduler(scheduler: Any) -> Any:
    """The twin of one of diffusers' schedulers, with its configuration as it is now; its own
    timesteps are not taken over.

    A scheduler of fastdiff is its own twin. Raises TypeError, with the nearest supported class, for
    others.
    """
    classes = importlib.import_module(__package__)
    name, module = type(scheduler).__name__, type(scheduler).__module__
    if module.split(".")[0] == "fastdiff":
        return scheduler
    if module.split(".")[0] != "diffusers" or name not in classes.__all__:
        raise TypeError(
            f"fastdiff.from_scheduler: expected a scheduler of diffusers with a twin, got {name}."
            f" {_near(name)}"
        )
    # pipelines rewrite values that were defaults: all are given, and those that still are one are
    # noted as such again
    config = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    cls = getattr(classes, name)
    defaults = {k: p.default for k, p in inspect.signature(cls.__init__).parameters.items()}
    untouched = [
        k for k in scheduler.config.get("_use_default_values", []) if config[k] == defaults.get(k)
    ]
    twin = cls.from_config(config)
    twin.register_to_config(**config, _use_default_values=untouched)
    return twin


def _near(name: str) -> str:
    known = [c for c in importlib.import_module(__package__).__all__ if c.endswith("Scheduler")]
    if name in _OF_TOKENS:
        return "It samples tokens, as no supported one does."
    near = _NEAREST.get(name) or next(
        iter(difflib.get_close_matches(name, known, n=1, cutoff=0.0)), "DDIMScheduler"
    )
    return f"The nearest supported one is {near}."


def swap(pipeline: Any) -> Any:
    """Gives a diffusers pipeline the twins of its schedulers, in place, and returns it.

    They are assigned to the finished pipeline: some constructors, such as DDIMPipeline's, make a
        scheduler of their own.
    """
    for name, component in list(pipeline.components.items()):
        if isinstance(component, SchedulerMixin):
            setattr(pipeline, name, from_scheduler(component))
    return pipeline
