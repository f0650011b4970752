"""Drop-ins: diffusers' schedulers over fastdiff's plans, with the same names, configurations,
numbers and random draws.

Read them in this order:

- `base`: what all classes share, and the way of a run from `set_timesteps` to a kernel;
- `state` and `traced`: what a run remembers, and how the rows of its plan are executed;
- `ddim`: a class with grids of training timesteps; `vp` is its base, `tables` and `grids` have the
  numbers as diffusers rounds them;
- `euler`: a class with grids of noise levels; its bases are `indexed`, `vp` and `sigma`;
- the other classes, on the bases `flow`, `integrators`, `karras`, `distilled` and `pairwise`; those
  of one family of models are `cogvideox`, `flow_map`, `ltx`, `minimax`, `scm` and `wuerstchen`;
- `quirks`: diffusers' formulas where they differ from those of `fastdiff.solvers`.

`conversion` turns diffusers' schedulers into drop-ins; `pipeline` serves `Sampler.from_diffusers`.
`scheduler` is no drop-in: it runs any solver on any grid for the network that a configuration
describes (`sampler_settings`), over the points of `visited`.
"""

from .base import SchedulerMixin as SchedulerMixin
from .cogvideox import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from .consistency_models import CMStochasticIterativeScheduler
from .conversion import check_version, from_scheduler, swap
from .ddim import DDIMInverseScheduler, DDIMParallelScheduler, DDIMScheduler
from .ddpm import DDPMParallelScheduler, DDPMScheduler
from .deis import DEISMultistepScheduler
from .distilled import LCMScheduler, TCDScheduler
from .dpm import (
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
)
from .dpm_sde import DPMSolverSDEScheduler
from .dpm_singlestep import DPMSolverSinglestepScheduler
from .edm import (
    CosineDPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)
from .euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from .flow_map import FlowMapEulerDiscreteScheduler
from .flow_match import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from .karras import (
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)
from .ltx import LTXEulerAncestralRFScheduler
from .minimax import MiniMaxH3Scheduler
from .pndm import IPNDMScheduler, PNDMScheduler
from .repaint import RePaintScheduler
from .sa import SASolverScheduler
from .scheduler import Scheduler as Scheduler
from .scm import SCMScheduler
from .unclip import UnCLIPScheduler
from .unipc import UniPCMultistepScheduler
from .wuerstchen import DDPMWuerstchenScheduler

__all__ = [
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
]

check_version()
