"""fastdiff: a diffusion sampling engine over hand-written kernels.

Public names load on first use; importing this package touches no GPU, no network and no thread.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .versions import __version__

_WHERE = {
    "Plan": "solvers",
    "Request": "sampling.requests",
    "Sampler": "sampler",
    "Schedule": "schedule",
    "Trainer": "training",
    "accelerate": "acceleration",
    "backends": "backend",
    "discretized_gaussian_nll": "ops",
    "gaussian_kl": "ops",
    "group_norm_silu": "ops",
    "noise_mse": "ops",
    "q_posterior": "ops",
    "q_sample": "ops",
    "randn": "ops",
    "reparameterize": "ops",
    "reverse_step": "ops",
    "to_uint8": "images",
    "use": "backend",
    "vlb_terms": "ops",
}
# diffusers' schedulers under their own names: pipelines store this package's name and find the
# class in it again
_DIFFUSERS = (
    "CMStochasticIterativeScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
    "from_scheduler",
    "swap",
)
_THEIRS = (
    "SchedulerMixin",
)  # loading a pipeline, diffusers looks for the bases of its components in their package

__all__ = [
    "Plan",
    "Request",
    "Sampler",
    "Schedule",
    "Trainer",
    "__version__",
    "accelerate",
    "backends",
    "discretized_gaussian_nll",
    "gaussian_kl",
    "group_norm_silu",
    "noise_mse",
    "q_posterior",
    "q_sample",
    "randn",
    "reparameterize",
    "reverse_step",
    "to_uint8",
    "use",
    "vlb_terms",
]

if TYPE_CHECKING:
    from .acceleration import accelerate
    from .backend.choice import backends, use
    from .images import to_uint8
    from .ops import (  # type: ignore[no-redef]  # the files of ops have their op's name
        discretized_gaussian_nll,
        gaussian_kl,
        group_norm_silu,
        noise_mse,
        q_posterior,
        q_sample,
        randn,
        reparameterize,
        reverse_step,
        vlb_terms,
    )
    from .sampler import Sampler
    from .sampling.requests import Request
    from .schedule import Schedule
    from .solvers import Plan
    from .training import Trainer


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in (*_DIFFUSERS, *_THEIRS):
        try:
            twins = importlib.import_module(".integrations.diffusers", __name__)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "diffusers":
                raise
            raise ImportError(
                f"fastdiff.{name}: expected diffusers (0.42) to be installed, got none. Install"
                " diffusers."
            ) from None
        value = getattr(twins, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    # help() and its like look at every name: what can't be had here is not shown
    return sorted(
        {*globals(), *_WHERE, *(_DIFFUSERS if importlib.util.find_spec("diffusers") else ())}
    )
