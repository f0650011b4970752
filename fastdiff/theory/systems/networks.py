"""Chooses and builds the network of a system for a data set: a published one, or the user's.

    network=None                   the system's own choice, by the shape of an example
    network="dit-s/4"              a name of fastdiff.models.NETWORKS
    network="package.module:make"  a function or class of the user's, called with keyword arguments
    network=module                 a network with weights, which a denoiser trains on

A user's function gets what it asks for by name of what follows from the data: `shape`, `channels`,
`size`, `dim`, `num_classes`, `out_channels`, `out` and `time_scale`. Its other arguments are
options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ...models import MLP, MODELS, Classifier, ImageUNet, UNet, from_factory
from ...models.published import find
from ...user_code import import_function, is_name, takes

_WHERE = "fastdiff.theory.systems"
# arguments that follow from the data or from other arguments
FROM_DATA = {
    "channels",
    "size",
    "dim",
    "out",
    "out_channels",
    "num_classes",
    "time_scale",
    "shape",
    "clip_range",
}
# systems with a network that `network=` chooses: the default for images and for points
DEFAULTS: dict[str, tuple[type[nn.Module], type[nn.Module] | None]] = {
    "classifier": (Classifier, MLP),
    "score": (UNet, MLP),
    "superres": (ImageUNet, None),
    "unet": (UNet, MLP),
    "vdm": (UNet, MLP),
}
REQUIRED = "(required)"  # the value of an option without a default, where options are listed


class Choice(NamedTuple):
    """A network that is chosen and not yet built.

    Attributes:
        make: the class or the user's function.
        fixed: the arguments that a published name stands for.
        name: of the user's function, None for a class of fastdiff.models.
    """

    make: Callable[..., Any]
    fixed: dict[str, Any]
    name: str | None


def is_points(data: Any) -> bool:
    """Returns whether the examples of a data set are vectors; else they are images."""
    return len(data.shape) == 1


def choose(system: str, data: Any, network: Any) -> Choice:
    """Returns the network that `network` stands for in a system.

    Raises ValueError for a name that is unknown or for other data, ImportError and TypeError for
    code that cannot be imported.
    """
    if isinstance(network, nn.Module):
        if system != "unet":
            raise ValueError(
                f"{_WHERE}: expected the system unet for a network with weights, got {system!r}."
            )
        return Choice(lambda: network, {}, None)
    if is_name(network):
        return Choice(import_function(network, _WHERE, "network"), {}, network)
    points = is_points(data)
    default = DEFAULTS[system][points]
    if default is None:
        raise ValueError(f"{_WHERE}: expected images for {system}, got {data.name}.")
    if network is None:
        return Choice(default, {}, None)
    kind, fixed = find(network)
    if (kind is MLP) != points:
        data_kind = "points" if points else "images"
        raise ValueError(
            f"{_WHERE}: expected a network for {data_kind} ({data.name}), got {network!r}."
        )
    if system == "classifier" and kind is not default:
        raise ValueError(
            f"{_WHERE}: expected package.module:factory of a network (x_t, t) -> logits for a"
            f" classifier, got {network!r}. Leave it out for the default one."
        )
    if system == "superres":
        return Choice(ImageUNet, {"inner": kind.__name__, **fixed}, None)
    return Choice(kind, fixed, None)


def options(choice: Choice) -> tuple[dict[str, Any], bool]:
    """Returns (a network's options with their defaults, whether it takes any other too)."""
    if choice.name is None and not isinstance(choice.make, type):
        return {}, False
    if choice.name is None:
        found = keywords(choice.make)
        if choice.make is ImageUNet:
            inner = choice.fixed.get("inner")
            found |= keywords(UNet if inner is None else MODELS[inner])
            found.pop("inner", None)
        return found | {k: v for k, v in choice.fixed.items() if k != "inner"}, False
    try:
        parameters = list(inspect.signature(choice.make).parameters.values())
    except (TypeError, ValueError):
        return {}, True
    found = {
        p.name: REQUIRED if p.default is p.empty else p.default
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in FROM_DATA
    }
    return found, any(p.kind is p.VAR_KEYWORD for p in parameters)


def keywords(kind: Any) -> dict[str, Any]:
    """Returns a constructor's arguments with defaults, except those that follow from the data."""
    return {
        p.name: p.default
        for p in inspect.signature(kind).parameters.values()
        if p.default is not inspect.Parameter.empty and p.name not in FROM_DATA
    }


def build(
    choice: Choice,
    data: Any,
    arguments: dict[str, Any],
    *,
    num_classes: int,
    inputs: int = 1,
    logits: bool = False,
    learned: bool = False,
    time_scale: float | None = None,
) -> nn.Module:
    """Returns the network.

    Args:
        choice: of `choose`.
        data: whose examples it is for.
        arguments: the options.
        num_classes: of its labels, or with `logits` of its output.
        inputs: the channels of its input for each channel of an example.
        logits: whether it is a classifier.
        learned: whether it gives a variance too, as twice the channels.
        time_scale: factor of the times; None leaves it out.

    Raises ValueError for examples of another shape than the network takes, and for options that
    are required and missing.
    """
    facts: dict[str, Any] = {"num_classes": num_classes}
    facts |= {} if time_scale is None else {"time_scale": time_scale}
    if is_points(data):
        facts |= {"dim": data.shape[0] * inputs}
        facts |= {"out": num_classes} if logits else {"out": data.shape[0]} if inputs > 1 else {}
    else:
        channels, *sides = data.shape
        facts |= {"channels": channels * inputs}
        facts |= {"size": sides[0]} if len(set(sides)) == 1 else {}
        facts |= {"out_channels": channels} if inputs > 1 else {}
    if choice.name is not None:
        outputs = data.shape[0] * (2 if learned else 1)
        full = {"shape": list(data.shape), "out_channels": outputs, "out": outputs}
        asked = takes(choice.make)
        return from_factory(
            choice.name, **{k: v for k, v in (full | facts).items() if k in asked} | arguments
        )
    if not isinstance(choice.make, type):
        return _fitting(choice.make(), facts)
    if not is_points(data) and "size" not in facts:
        raise ValueError(
            f"{_WHERE}: expected square images, got {' by '.join(map(str, data.shape[1:]))}. Pad"
            " them."
        )
    if learned:
        if "learn_sigma" in options(choice)[0]:
            arguments = arguments | {"learn_sigma": True}
        else:
            facts["out" if is_points(data) else "out_channels"] = 2 * data.shape[0]
    elif arguments.get("learn_sigma"):
        raise ValueError(
            f"{_WHERE}: expected learn_sigma with the loss hybrid or a learned variance, got it"
            " without. Nothing would train the variance."
        )
    if logits and is_points(data):
        del facts["num_classes"]  # an MLP's labels are an input
    return choice.make(**facts | choice.fixed | arguments)


def _fitting(network: Any, facts: dict[str, Any]) -> nn.Module:
    """Returns a network with weights. Raises ValueError for one of other examples or times."""
    config = getattr(network, "config", None)
    known = config if isinstance(config, dict) else {}
    for key in ("channels", "size", "dim", "time_scale"):
        value = known.get(key, 1.0 if key == "time_scale" and known else None)
        if value is not None and facts.get(key) != value:
            raise ValueError(
                f"{_WHERE}: expected a network of {key} {facts.get(key)} for these data and"
                f" schedule, got one of {value}."
            )
    return network


def part(name: Any, **facts: Any) -> nn.Module:
    """Returns a part of a system, such as an encoder, made by the user's code.

    name: package.module:function. facts: what it gets of them, those that it asks for by name.

    Raises ValueError for other names, and as `from_factory` does.
    """
    if not is_name(name):
        raise ValueError(f"{_WHERE}: expected package.module:function, got {name!r}.")
    asked = takes(import_function(name, _WHERE, "network"))
    return from_factory(name, **{k: v for k, v in facts.items() if k in asked})
