"""Converts networks to descriptions that JSON can hold, and back.

    {"class": name, "config": arguments}        a network of this package
    {"factory": "package.module:function", "config": arguments}      one of the user's code

A description with a factory names code. `build` runs it only if it is told to; whoever reads a
description from a file asks first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from ..user_code import call, import_function, is_name, origin
from .attention_unet import AttentionUNet
from .classifier import Classifier
from .dit import DiT
from .image_unet import ImageUNet
from .mlp import MLP
from .unet import UNet

MODELS: dict[str, type[nn.Module]] = {
    "AttentionUNet": AttentionUNet,
    "Classifier": Classifier,
    "DiT": DiT,
    "ImageUNet": ImageUNet,
    "MLP": MLP,
    "UNet": UNet,
}
_WHERE = "fastdiff.models"
_KEY = "_fastdiff_factory"  # the attribute of a network that holds its description


def build(description: dict[str, Any], trust: bool = False) -> nn.Module:
    """Returns a newly initialised network for a description.

    trust: whether a factory may run, which is the user's code or that of whoever wrote the
        description.

    Raises ValueError for other content and for a factory without trust.
    """
    if "factory" in description:
        check_trust(description, trust, "the description")
        return from_factory(description["factory"], **description.get("config", {}))
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

    Raises TypeError for networks that are not of fastdiff.models and have no factory.
    """
    found = description_of(network)
    if found is None:
        raise TypeError(
            f"fastdiff.models: expected a network of fastdiff.models ({', '.join(sorted(MODELS))})"
            f" or one with a factory to save, got {type(network).__name__}. Tell how it is made:"
            ' fastdiff.models.made_by(network, "package.module:function", **arguments).'
        )
    return found


def description_of(network: Any) -> dict[str, Any] | None:
    """Returns the description of a network, None for one that has none."""
    made = getattr(network, "__dict__", {}).get(_KEY)
    if made is not None:
        return {"factory": made["factory"], "config": dict(made["config"])}
    name = type(network).__name__
    if MODELS.get(name) is not type(network):
        return None
    return {"class": name, "config": dict(cast(Any, network).config)}


def made_by(network: nn.Module, factory: str, **arguments: Any) -> nn.Module:
    """Notes that factory(**arguments) makes this network, and returns it.

    A model folder then describes the network by the factory's name and the arguments. Whoever loads
    the folder calls the factory and fills the network with the folder's weights.

    Args:
        network: a module; it is not copied.
        factory: "package.module:function" or a class, importable where the folder is loaded.
        arguments: as JSON can hold them.

    Raises:
        TypeError: for an object that is no module.
        ValueError: for a name of another form and arguments that JSON cannot hold.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"{_WHERE}: expected a torch.nn.Module, got a {type(network).__name__}.")
    if not is_name(factory):
        raise ValueError(
            f"{_WHERE}: expected a factory as package.module:function, got {factory!r}."
        )
    try:
        config = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError):
        raise ValueError(
            f"{_WHERE}: expected arguments of {factory} that JSON can hold, got {arguments!r}."
        ) from None
    network.__dict__[_KEY] = {"factory": factory, "config": config}
    return network


def from_factory(name: str, **arguments: Any) -> nn.Module:
    """Imports "package.module:function" and returns function(**arguments), a network.

    The current directory is searched first, as with `python -m`. The result can be saved.

    Raises ImportError, TypeError and ValueError in one sentence: for a name without such a
    function, arguments that it does not take, and a result that is no module.
    """
    if not is_name(name):
        raise ValueError(f"{_WHERE}: expected a factory as package.module:function, got {name!r}.")
    made = call(import_function(name, _WHERE, "network"), arguments, name, _WHERE)
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"{_WHERE}: expected {name}() to return a torch.nn.Module, got {type(made).__name__}."
        )
    return made_by(made, name, **arguments)


def check_trust(description: Mapping[str, Any], trust: bool, where: str) -> None:
    """Refuses a description that names code, unless the caller trusts it.

    where: the description's place, for the message. Raises ValueError.
    """
    name = description.get("factory")
    if not trust and name is not None:
        if not is_name(name):
            raise ValueError(
                f"{_WHERE}: expected a factory as package.module:function in {where}, got"
                f" {str(name)[:60]!r}."
            )
        raise ValueError(
            f"{_WHERE}: expected trust in the code that {where} names, got none: its network"
            f" {name!r} would import {name.partition(':')[0]!r} from {origin(name)} and run it."
            " Read that, then pass --trust (in Python trust=True)."
        )
