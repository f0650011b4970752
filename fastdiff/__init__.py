"""fastdiff: a diffusion sampling engine over hand-written kernels.

Public names load on first use. Importing this package touches no GPU, opens no connection and
starts no thread.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from . import moved
from .table import OPS as _OPS
from .versions import __version__

moved.install()

_WHERE = {
    "Plan": "solvers",
    "Request": "sampling.requests",
    "Rollout": "sampling.rollout",
    "Sampler": "sampler",
    "Schedule": "schedule",
    "Trainer": "training",
    "accelerate": "acceleration",
    "backends": "backend",
    "shared": "sampling.conditions",
    "to_uint8": "images",
    "use": "backend",
    **dict.fromkeys(_OPS, "ops"),
}
# Drop-ins have the names of diffusers' schedulers. A saved pipeline stores the name of this package
# and looks the class up in it.
_DIFFUSERS = (
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DDPMWuerstchenScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
    "from_scheduler",
    "swap",
)
# Scheduler has any solver; when it loads a pipeline, diffusers looks up the base class of a
# component in the same package
_BESIDES = ("Scheduler", "SchedulerMixin")

__all__ = [
    "Plan",
    "Request",
    "Rollout",
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
    "shared",
    "step_log_prob",
    "to_uint8",
    "use",
    "vlb_terms",
]

if TYPE_CHECKING:
    from .acceleration import accelerate
    from .backend.choice import backends, use
    from .images import to_uint8
    from .ops import (  # type: ignore[no-redef]  # a file of ops has the name of its op
        discretized_gaussian_nll,
        gaussian_kl,
        group_norm_silu,
        noise_mse,
        q_posterior,
        q_sample,
        randn,
        reparameterize,
        reverse_step,
        step_log_prob,
        vlb_terms,
    )
    from .sampler import Sampler
    from .sampling.conditions import shared
    from .sampling.requests import Request
    from .sampling.rollout import Rollout
    from .schedule import Schedule
    from .solvers import Plan
    from .training import Trainer


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in (*_DIFFUSERS, *_BESIDES):
        try:
            drop_ins = importlib.import_module(".integrations.diffusers", __name__)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "diffusers":
                raise
            raise ImportError(
                f"fastdiff.{name}: expected diffusers (0.42) to be installed, got none. Install"
                " diffusers."
            ) from None
        value = getattr(drop_ins, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    # help() and inspect look at every listed name, so names that cannot load here are left out
    return sorted(
        {
            *globals(),
            *_WHERE,
            *((*_DIFFUSERS, "Scheduler") if importlib.util.find_spec("diffusers") else ()),
        }
    )
