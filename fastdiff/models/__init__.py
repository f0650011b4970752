"""Networks for training and sampling; this package imports torch only, and code that is named.

A network is any callable (x_t [B, …], t [B], **cond) -> output. The networks here store their
constructor's arguments in `.config`, a dict that JSON can hold, so that a model folder can describe
the network of its weights. A network of the user's code is described by the function that makes it.
"""

from .attention_unet import AttentionUNet
from .build import MODELS, build, describe, from_factory, made_by
from .classifier import Classifier
from .dit import DiT
from .fourier import LEVELS, features
from .image_unet import ImageUNet
from .mlp import MLP
from .published import NETWORKS, network
from .unet import UNet

__all__ = [
    "LEVELS",
    "MODELS",
    "MLP",
    "NETWORKS",
    "AttentionUNet",
    "Classifier",
    "DiT",
    "ImageUNet",
    "UNet",
    "build",
    "describe",
    "features",
    "from_factory",
    "made_by",
    "network",
]
