"""Builds systems of the registry for a data set, in sizes that train in minutes on two CPU cores.

Images get convolutional networks and the discretised likelihood of 8-bit levels; points of the
plane get perceptrons and densities. Options override the defaults.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ...models import LEVELS, MLP, Classifier, ImageUNet, UNet
from ...prediction import normalize
from ...schedule import FORMULAS, Schedule
from ..registry import find
from ..score.model import network_for
from .denoiser import LEARNED, Denoiser
from .superres import SuperResolution

# systems that contain a network, with their network for images and for points; options that are not
# the system's own go to the network
NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module] | None]] = {
    "classifier": (Classifier, MLP),
    "score": (UNet, MLP),
    "superres": (ImageUNet, None),
    "unet": (UNet, MLP),
}
# options of these systems (except score) in addition to their constructors' arguments
SCHEDULED = {"schedule": "cosine", "timesteps": 1000}
# of densities of points, which are near curves
SHARP = {"likelihood": "gaussian", "initial_std": 0.15, "min_log_std": -3.0}
# sines and cosines of wave lengths 4, 2 and 1; without them a network learns a ring instead of the
# eight points of the mixture
WAVES = (-1, 0, 1)
# of a denoiser: chosen by the prediction type, see `objective_of`
AUTO = {"weighting": "auto", "precondition": "auto"}
# (weighting, precondition) by prediction type; `output` and False for the others. With these all
# types reach about one bound (docs/training/objectives.md)
OBJECTIVES = {
    "epsilon": ("simple", True),
    "flow": ("output", True),
    "score": ("simple", True),
    "x0": ("v", True),
}
# default arguments of the constructors, for images and for points
DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hvae": ({}, {"latents": ((2, 1), (2, 1)), "widths": (64, 64), **SHARP}),
    "markovian": ({"latents": (64, 32), "widths": (256,), "likelihood": "discretized"}, SHARP),
    "vae": (
        {},
        {
            "latent": 2,
            "network": "mlp",
            "covariance": "isotropic",
            "objective": "importance",
            "samples": 8,
            **SHARP,
        },
    ),
    "score": ({"fourier": LEVELS}, {"fourier": WAVES}),
    "superres": (AUTO, AUTO),
    "unet": (AUTO, {"waves": WAVES, **AUTO}),
    "vdm": ({}, {"likelihood": "gaussian", "fourier": WAVES}),
}
# arguments that follow from the data or from other arguments
_FROM_DATA = {
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


def make(name: str, data: Any, **options: Any) -> Any:
    """Returns a new system of the registry for a data set of fastdiff.data.

    The initial weights are drawn from torch's global generator.

    Raises ValueError for an unknown name or option, with the known ones, and for data that the
    system can't model.
    """
    known = options_of(name, data)
    for option in options:
        if option not in known:
            listed = ", ".join(f"{k}={v}" for k, v in known.items())
            raise ValueError(
                f"fastdiff.theory.systems: expected an option of {name} ({listed}), got {option!r}."
            )
    arguments, kind = known | options, find(name)
    if name not in NETWORKS:
        return kind(**{"shape": data.shape, **arguments})
    own = {k: arguments.pop(k) for k in _own(name, data)}
    own |= objective_of(own) if "precondition" in own else {}
    if name == "score":
        sizes = _sizes(name, data)
        network = network_for(
            data.shape, fourier=own["fourier"], classes=sizes["num_classes"], **arguments
        )
        return kind(network, likelihood=_likelihood(data), **own)
    schedule = _schedule(own.pop("schedule"), own.pop("timesteps"))
    sizes = _sizes(name, data)
    if own.get("loss") == "hybrid" or own.get("variance") in LEARNED:
        sizes |= {"out" if data.levels is None else "out_channels": 2 * data.shape[0]}
    network = _network(name, data)(
        **sizes, **arguments, time_scale=1000.0 if schedule.continuous else 1.0
    )
    if name == "classifier":
        return kind(network, schedule)
    return kind(
        network,
        schedule,
        **own,
        clip_range=1.0 if data.levels else None,
        likelihood=_likelihood(data),
    )


def objective_of(options: dict[str, Any]) -> dict[str, Any]:
    """Returns weighting and precondition of a denoiser's options, `auto` by its prediction type."""
    kind = normalize(options["prediction_type"])
    chosen = dict(zip(AUTO, OBJECTIVES.get(kind, ("output", False)), strict=True))
    return {k: v if options[k] == "auto" else options[k] for k, v in chosen.items()}


def options_of(name: str, data: Any) -> dict[str, Any]:
    """Returns the options of a system with their defaults for this data set."""
    options = (
        _own(name, data) | _keywords(_network(name, data))
        if name in NETWORKS
        else _keywords(find(name))
    )
    return options | DEFAULTS.get(name, ({}, {}))[data.levels is None]


def _own(name: str, data: Any) -> dict[str, Any]:
    """Returns the options of a system that are not its network's."""
    own = {k: v for k, v in _keywords(find(name)).items() if k != "likelihood"}
    if data.levels is None and "label_dropout" in own:
        own["label_dropout"] = 0.5  # pictures and densities of points are drawn without labels
    return own if name == "score" else own | SCHEDULED


def _likelihood(data: Any) -> str:
    return "gaussian" if data.levels is None else "discretized"


def _keywords(kind: Any) -> dict[str, Any]:
    """Returns a constructor's arguments with defaults, except those that follow from the data."""
    own = {
        p.name: p.default
        for p in inspect.signature(kind).parameters.values()
        if p.default is not inspect.Parameter.empty and p.name not in _FROM_DATA
    }
    # these constructors pass **arguments on to another class
    further = {ImageUNet: UNet, SuperResolution: Denoiser}.get(kind)
    return own | (_keywords(further) if further else {})


def _network(name: str, data: Any) -> Any:
    network = NETWORKS[name][data.levels is None]
    if network is None:
        raise ValueError(f"fastdiff.theory.systems: expected images for {name}, got {data.name}.")
    return network


def _sizes(name: str, data: Any) -> dict[str, Any]:
    classes = len(data.classes)
    if name == "classifier" and not classes:
        raise ValueError(
            "fastdiff.theory.systems: expected data with classes for a classifier, got"
            f" {data.name}."
        )
    if data.levels is None:
        sizes: dict[str, Any] = {"dim": data.shape[0]}
        return sizes | ({"out": classes} if name == "classifier" else {"num_classes": classes})
    channels, height, width = data.shape
    if height != width:
        raise ValueError(
            f"fastdiff.theory.systems: expected square images, got {height} by {width}. Pad them."
        )
    return {"channels": channels, "size": height, "num_classes": classes}


def _schedule(name: str, timesteps: int) -> Schedule:
    if name not in FORMULAS:
        raise ValueError(
            f"fastdiff.theory.systems: expected schedule in {list(FORMULAS)}, got {name!r}."
        )
    return getattr(Schedule, name)(timesteps)
