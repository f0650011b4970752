"""Thin networks to sample from and to train: torch only, no fastdiff imports.

A network is any callable (x_t [B, C, H, W], t [B], **cond) -> output [B, C, H, W]; these keep their constructor's
arguments in `.config`, a dict JSON can hold, so that a folder of weights names the network it belongs to.
"""

from .unet import UNet

MODELS: dict[str, type[UNet]] = {"UNet": UNet}

__all__ = ["MODELS", "UNet"]
