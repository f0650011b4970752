"""The network of any model folder, to train it on: fastdiff's or diffusers'."""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch import nn

from ..outside import shown
from .diffusers_models import from_diffusers_model
from .files import folder_of, read_json
from .folders import load, load_system, locate


def network_of(path: str | PathLike[str], *, trust: bool = False) -> nn.Module:
    """Returns the network of a folder of fastdiff or of diffusers, or of a shipped model.

    Args:
        path: a model folder with config.json, see `load` and `from_diffusers_model`.
        trust: whether the code that the folder names as its network may run.

    Raises FileNotFoundError and ValueError in one sentence, as these do.
    """
    folder = folder_of(locate(path))
    config = read_json(folder / "config.json", finite=False)
    if "_class_name" in config:
        return from_diffusers_model(folder)
    if "system" not in config:
        return load(path, trust=trust)[0]
    system: Any = load_system(path, trust=trust)
    network = getattr(system, "network", None)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"fastdiff.pretrained: expected a system with a network in {shown(path)}, got a"
            f" {type(system).__name__}."
        )
    return network
