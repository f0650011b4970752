"""Systems to fit a data set: the sizes that train in minutes on two CPU cores, each open to options.

Images get convolutional networks and the discretised likelihood of 8-bit levels; points of the plane get perceptrons and
densities.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..models import MLP, Classifier, ImageUNet, UNet
from ..registry import find
from ..schedule import FORMULAS, Schedule
from .classifier import NoisyClassifier
from .denoiser import Denoiser
from .superres import SuperResolution

# the networks of the systems built here: of images, and of points
NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module] | None]] = {
    "unet": (UNet, MLP),
    "superres": (ImageUNet, None),
    "classifier": (Classifier, MLP),
}
# options of every system with a schedule, and of each
_NOISE = {"schedule": "cosine", "timesteps": 1000}
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {"prediction_type": "v", "label_dropout": 0.1, **_NOISE},
    "superres": {"prediction_type": "v", "label_dropout": 0.1, "factor": 2, **_NOISE},
    "classifier": _NOISE,
}
# what the other systems' constructors are given when nothing else is said: for images, and for points
DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vae": ({}, {"latent": 2, "network": "mlp", "likelihood": "gaussian"}),
}
_FROM_DATA = {"channels", "size", "dim", "out", "out_channels", "num_classes", "time_scale", "shape"}


def make(name: str, data: Any, **options: Any) -> Any:
    """A fresh system of the registry for a data set of fastdiff.data; its first weights are torch's global generator's.

    Raises ValueError for a name or an option that does not exist, with those that do, and for data it can't be made for.
    """
    known = options_of(name, data)
    for option in options:
        if option not in known:
            listed = ", ".join(f"{k}={v}" for k, v in known.items())
            raise ValueError(f"fastdiff.systems: expected an option of {name} ({listed}), got {option!r}.")
    if name not in NETWORKS:
        return find(name)(**{"shape": data.shape, **known, **options})
    given = known | options
    own = {k: given.pop(k) for k in OPTIONS[name]}
    schedule = _schedule(own.pop("schedule"), own.pop("timesteps"))
    network = _network(name, data)(**_sizes(name, data), **given, time_scale=1000.0 if schedule.continuous else 1.0)
    if name == "classifier":
        return NoisyClassifier(network, schedule)
    kind: Any = SuperResolution if name == "superres" else Denoiser
    images = data.levels is not None
    data_options = {"clip_range": 1.0 if images else None, "likelihood": "discretized" if images else "gaussian"}
    return kind(network, schedule, **own, **data_options)


def options_of(name: str, data: Any) -> dict[str, Any]:
    """The options of a system, and their values for this data set when nothing else is said."""
    if name in NETWORKS:
        return OPTIONS[name] | _keywords(_network(name, data))
    return _keywords(find(name)) | DEFAULTS.get(name, ({}, {}))[data.levels is None]


def _keywords(kind: Any) -> dict[str, Any]:
    """The constructor's arguments with their defaults; those that follow from the data are left out."""
    found = inspect.signature(kind).parameters.values()
    own = {p.name: p.default for p in found if p.default is not inspect.Parameter.empty and p.name not in _FROM_DATA}
    # an ImageUNet passes its arguments on
    return own | (_keywords(UNet) if kind is ImageUNet else {})


def _network(name: str, data: Any) -> Any:
    network = NETWORKS[name][data.levels is None]
    if network is None:
        raise ValueError(f"fastdiff.systems: expected images for {name}, got {data.name}.")
    return network


def _sizes(name: str, data: Any) -> dict[str, Any]:
    classes = len(data.classes)
    if name == "classifier" and not classes:
        raise ValueError(f"fastdiff.systems: expected data with classes for a classifier, got {data.name}.")
    if data.levels is None:
        sizes: dict[str, Any] = {"dim": data.shape[0]}
        return sizes | ({"out": classes} if name == "classifier" else {"num_classes": classes})
    channels, height, width = data.shape
    if height != width:
        raise ValueError(f"fastdiff.systems: expected square images, got {height} by {width}. Pad them.")
    return {"channels": channels, "size": height, "num_classes": classes}


def _schedule(name: str, timesteps: int) -> Schedule:
    if name not in FORMULAS:
        raise ValueError(f"fastdiff.systems: expected schedule in {list(FORMULAS)}, got {name!r}.")
    return getattr(Schedule, name)(timesteps)
