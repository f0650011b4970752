"""Reads and writes model folders: a description in config.json, weights in model.safetensors.

config.json names the system (fastdiff.theory.registry) and its arguments. For a network with a
schedule, as a sampler needs it, it also holds the network, the schedule, the prediction type and
the default settings of a sampler. A folder without a system holds a denoiser. Nothing in a folder
is executed. The shipped models are folders next to this file.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..models import MODELS, build, describe
from ..prediction import normalize
from ..schedule import Schedule
from ..theory import registry
from .files import load_folder, save_folder

FORMAT_VERSION = 1
_NETWORK = "network."  # the prefix of the network's weights in a system's state dict


def shipped() -> list[str]:
    """Returns the names of the models shipped with the package."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/config.json"))


def locate(path: str | PathLike[str]) -> Path:
    """Returns the folder `path`, or the folder of the shipped model of that name."""
    folder = Path(path)
    if not folder.exists() and str(path) in shipped():
        return Path(__file__).parent / str(path)
    return folder


def read_config(path: str | PathLike[str]) -> dict[str, Any]:
    """Returns the folder's config.json, checked for version and keys."""
    return _checked(load_folder(locate(path))[0], path)


def load(path: str | PathLike[str]) -> tuple[torch.nn.Module, Schedule, dict[str, Any]]:
    """Returns (network in eval mode, schedule, sampler settings) of a folder or a shipped model.

    Raises FileNotFoundError for a missing folder. Raises ValueError for files that can't be read or
    do not belong together, and for systems that a sampler can't draw from.
    """
    config, tensors = load_folder(locate(path))
    _checked(config, path)
    if "system" in config:
        system: Any = _system(config, tensors, path)
        if not hasattr(system, "for_sampler"):
            raise ValueError(
                f"fastdiff.pretrained: expected a diffusion model in {path}, got the system"
                f" {config['system']['name']!r}. Draw samples with"
                " fastdiff.pretrained.load_system(path).sample(n, seed=…)."
            )
        network, schedule, settings = system.for_sampler()
    else:
        network, schedule, settings = (
            build(config["model"]),
            Schedule.from_config(config["schedule"]),
            {},
        )
        _fill(network, tensors, config["model"]["class"], path)
    if "prediction_type" in config:
        settings |= {"prediction_type": normalize(config["prediction_type"])}
    return network.eval(), schedule, settings | config.get("sampler", {})


def load_system(path: str | PathLike[str]) -> torch.nn.Module:
    """Returns the system of a folder or a shipped model, in eval mode. Raises as `load` does."""
    config, tensors = load_folder(locate(path))
    return _system(_checked(config, path), tensors, path).eval()


def save_system(path: str | PathLike[str], system: Any, **extra: Any) -> None:
    """Writes the folder of a system; `extra` (data, training) is stored in config.json.

    If the system has no weights except its network's, they are stored under the network's own
    names; the folder is then that of `save` plus the key "system".

    Raises TypeError for a system that is not in the registry.
    """
    config: dict[str, Any] = {"format_version": FORMAT_VERSION}
    tensors = system.state_dict()
    if hasattr(system, "for_sampler"):
        network, schedule, settings = system.for_sampler()
        if MODELS.get(type(network).__name__) is type(network):
            config |= _sampling(network, schedule, settings)
            if all(k.startswith(_NETWORK) for k in tensors):
                tensors = {k.removeprefix(_NETWORK): v for k, v in tensors.items()}
    config["system"] = {"name": registry.name_of(system), "config": system.config}
    save_folder(path, {**config, **extra}, tensors)


def save(
    path: str | PathLike[str],
    network: Any,
    schedule: Schedule,
    settings: dict[str, Any],
    **extra: Any,
) -> None:
    """Writes the folder of a network; `extra` (data, training) is stored in config.json.

    Raises TypeError for a network that is not of fastdiff.models.
    """
    config = {"format_version": FORMAT_VERSION, **_sampling(network, schedule, settings), **extra}
    save_folder(path, config, network.state_dict())


def _sampling(network: Any, schedule: Schedule, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of config.json that a sampler reads."""
    rest = {k: v for k, v in settings.items() if k != "prediction_type"}
    return {
        "model": describe(network),
        "schedule": schedule.to_config(),
        "prediction_type": settings["prediction_type"],
        "sampler": rest,
    }


def _system(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], path: str | PathLike[str]
) -> torch.nn.Module:
    """Returns the system of a folder's content; a folder written by `save` holds a denoiser."""
    description = config.get("system")
    if description is None:
        arguments = {
            k: config["sampler"][k] for k in ("clip_range",) if k in config.get("sampler", {})
        }
        arguments |= {
            k: config["training"][k] for k in ("label_dropout",) if k in config.get("training", {})
        }
        arguments |= {"network": config["model"], "schedule": config["schedule"]}
        description = {
            "name": "unet",
            "config": arguments | {"prediction_type": config["prediction_type"]},
        }
    if not isinstance(description, dict) or not {"name", "config"} <= description.keys():
        raise ValueError(
            "fastdiff.pretrained: expected a name and a config under 'system' in"
            f" {path}/config.json."
        )
    kind = registry.find(description["name"])
    try:
        system = kind(**description["config"])
    except TypeError as error:
        raise ValueError(
            f"fastdiff.pretrained: expected the arguments of {kind.__name__} in {path}/config.json:"
            f" {error}."
        ) from None
    names = system.state_dict().keys()
    if tensors.keys() != names and {_NETWORK + k for k in tensors} == names:
        tensors = {_NETWORK + k: v for k, v in tensors.items()}
    _fill(system, tensors, kind.__name__, path)
    return system


def _fill(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str, path: str | PathLike[str]
) -> None:
    """Loads all weights into the module.

    Raises ValueError, with the name of one of them, if they are those of another module.
    """
    expected = module.state_dict()
    wrong = {k for k, v in expected.items() if k not in tensors or tensors[k].shape != v.shape} | (
        tensors.keys() - expected.keys()
    )
    if wrong:
        first = min(wrong)
        got = list(tensors[first].shape) if first in tensors else "nothing"
        raise ValueError(
            f"fastdiff.pretrained: expected the weights of the {name} in {path}/config.json, got"
            f" {got} for {first!r}. The two files do not belong together."
        )
    module.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()})


def _checked(config: dict[str, Any], path: str | PathLike[str]) -> dict[str, Any]:
    """Returns the config. Raises ValueError for missing keys and another format version."""
    needed = ("system",) if "system" in config else ("model", "schedule", "prediction_type")
    missing = [k for k in ("format_version", *needed) if k not in config]
    if missing:
        raise ValueError(
            f"fastdiff.pretrained: expected the key {missing[0]!r} in {path}/config.json, got none."
        )
    if config["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"fastdiff.pretrained: expected format_version {FORMAT_VERSION} in {path}/config.json,"
            f" got {config['format_version']!r}. Update fastdiff."
        )
    return config
