"""Small networks for training and sampling; this package imports torch only.

A network is any callable (x_t [B, …], t [B], **cond) -> output. The networks here store their
constructor's arguments in `.config`, a dict that JSON can hold, so that a model folder can describe
the network of its weights.
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
