"""diffusers' schedulers over fastdiff's plans: the same names, configurations, numbers and draws."""

from .ddim import DDIMScheduler
from .ddpm import DDPMScheduler
from .euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
]
