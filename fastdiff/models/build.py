"""Converts networks to descriptions {"class": name, "config": arguments} for JSON, and back."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from .classifier import Classifier
from .image_unet import ImageUNet
from .mlp import MLP
from .unet import UNet

MODELS: dict[str, type[nn.Module]] = {
    "Classifier": Classifier,
    "ImageUNet": ImageUNet,
    "MLP": MLP,
    "UNet": UNet,
}


def build(description: dict[str, Any]) -> nn.Module:
    """Returns a newly initialised network for {"class": name, "config": arguments}.

    Raises ValueError for other content.
    """
    name = description.get("class")
    if name not in MODELS:
        raise ValueError(
            f"fastdiff.models: expected a model class in {sorted(MODELS)}, got {name!r}."
        )
    try:
        return MODELS[name](**description.get("config", {}))
    except TypeError as error:
        raise ValueError(
            f"fastdiff.models: expected arguments of {name} in its config: {error}."
        ) from None


def describe(network: Any) -> dict[str, Any]:
    """Returns the description of a network: the inverse of `build`.

    Raises TypeError for networks that are not of fastdiff.models.
    """
    name = type(network).__name__
    if MODELS.get(name) is not type(network):
        raise TypeError(
            f"fastdiff.models: expected a network of fastdiff.models ({', '.join(sorted(MODELS))})"
            f" to save, got {name}. Save your own network with your own code and pass it to"
            " Sampler."
        )
    return {"class": name, "config": dict(cast(Any, network).config)}
