"""Drop-ins: diffusers' schedulers over fastdiff's plans, with the same names, configurations,
numbers and random draws.
"""

from .base import SchedulerMixin as SchedulerMixin
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
from .pndm import IPNDMScheduler, PNDMScheduler
from .repaint import RePaintScheduler
from .sa import SASolverScheduler
from .unclip import UnCLIPScheduler
from .unipc import UniPCMultistepScheduler

__all__ = [
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
]

check_version()
