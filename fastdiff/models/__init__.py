"""Thin networks to sample from and to train: torch only, no fastdiff imports.

A network is any callable (x_t [B, …], t [B], **cond) -> output; these keep their constructor's
arguments in `.config`, a dict JSON can hold, so that a folder of weights names the network it
belongs to.
"""

from .build import MODELS, build, describe
from .classifier import Classifier
from .fourier import LEVELS, features
from .image_unet import ImageUNet
from .mlp import MLP
from .unet import UNet

__all__ = [
    "LEVELS",
    "MODELS",
    "MLP",
    "Classifier",
    "ImageUNet",
    "UNet",
    "build",
    "describe",
    "features",
]
