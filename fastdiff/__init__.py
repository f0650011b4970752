"""fastdiff: a diffusion sampling engine over hand-written kernels.

Public names load on first use. Importing this package touches no GPU, opens no connection and
starts no thread.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from . import lazy, moved
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
# the modules that are attributes of the package without an import statement of their own
_MODULES = (
    "acceleration",
    "backend",
    "data",
    "images",
    "integrations",
    "jobs",
    "metrics",
    "models",
    "ops",
    "prediction",
    "pretrained",
    "rng",
    "sampling",
    "schedule",
    "solvers",
    "theory",
    "training",
)
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

if TYPE_CHECKING:  # type checkers read this branch; a test compares it with what loads
    from . import acceleration as acceleration
    from . import backend as backend
    from . import data as data
    from . import images as images
    from . import integrations as integrations
    from . import jobs as jobs
    from . import metrics as metrics
    from . import models as models
    from . import ops as ops
    from . import prediction as prediction
    from . import pretrained as pretrained
    from . import rng as rng
    from . import sampling as sampling
    from . import schedule as schedule
    from . import solvers as solvers
    from . import theory as theory
    from . import training as training
    from .acceleration import accelerate
    from .backend.choice import backends, use
    from .images import to_uint8
    from .integrations.diffusers import *  # noqa: F403
    from .integrations.diffusers import Scheduler as Scheduler
    from .integrations.diffusers import SchedulerMixin as SchedulerMixin
    from .ops.discretized_gaussian_nll import discretized_gaussian_nll
    from .ops.gaussian_kl import gaussian_kl
    from .ops.group_norm_silu import group_norm_silu
    from .ops.noise_mse import noise_mse
    from .ops.q_posterior import q_posterior
    from .ops.q_sample import q_sample
    from .ops.randn import randn
    from .ops.reparameterize import reparameterize
    from .ops.reverse_step import reverse_step
    from .ops.step_log_prob import step_log_prob
    from .ops.vlb_terms import vlb_terms
    from .sampler import Sampler
    from .sampling.conditions import shared
    from .sampling.requests import Request
    from .sampling.rollout import Rollout
    from .schedule import Schedule
    from .solvers import Plan
    from .training import Trainer
else:
    _own_name, _own_names = lazy.on_first_use(__name__, _WHERE, _MODULES)

    def __getattr__(name: str) -> Any:
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
        return _own_name(name)

    def __dir__() -> list[str]:
        # help() and inspect look at every listed name, so names that cannot load here are left out
        drop_ins = (*_DIFFUSERS, "Scheduler") if importlib.util.find_spec("diffusers") else ()
        return sorted({*_own_names(), *drop_ins})
