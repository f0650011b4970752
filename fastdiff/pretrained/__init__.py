"""Model folders: config.json (what the numbers mean) beside model.safetensors (the numbers).

config.json names the network and its arguments, the schedule and the prediction type it was trained with, and the
settings a sampler starts from; nothing in a folder is executed. Shipped models lie beside this file, by name.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_folder, save_folder
from ..models import build, describe
from ..prediction import normalize
from ..schedule import Schedule

FORMAT_VERSION = 1


def shipped() -> list[str]:
    """Names of the models inside the package."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/config.json"))


def locate(path: str | PathLike[str]) -> Path:
    """A folder as it is, or the folder of a shipped model's name."""
    folder = Path(path)
    if not folder.exists() and str(path) in shipped():
        return Path(__file__).parent / str(path)
    return folder


def read_config(path: str | PathLike[str]) -> dict[str, Any]:
    """The folder's config.json, checked for version and keys."""
    return _checked(load_folder(locate(path))[0], path)


def load(path: str | PathLike[str]) -> tuple[torch.nn.Module, Schedule, dict[str, Any]]:
    """(network in eval mode, schedule, sampler settings) of a folder or a shipped name.

    Raises FileNotFoundError for a missing folder and ValueError for files that can't be read or do not fit.
    """
    config, tensors = load_folder(locate(path))
    _checked(config, path)
    network = build(config["model"])
    wrong = {k for k, v in network.state_dict().items() if k not in tensors or tensors[k].shape != v.shape}
    wrong |= tensors.keys() - network.state_dict().keys()
    if wrong:
        name = min(wrong)
        got = list(tensors[name].shape) if name in tensors else "nothing"
        raise ValueError(
            f"fastdiff.pretrained: expected the weights of the {config['model']['class']} in {path}/config.json, got "
            f"{got} for {name!r}. The two files do not belong together."
        )
    network.load_state_dict({k: v.to(network.state_dict()[k].dtype) for k, v in tensors.items()})
    settings = {"prediction_type": normalize(config["prediction_type"]), **config.get("sampler", {})}
    return network.eval(), Schedule.from_config(config["schedule"]), settings


def save(path: str | PathLike[str], network: Any, schedule: Schedule, settings: dict[str, Any], **extra: Any) -> None:
    """Writes a folder; `extra` (data, training) is kept in config.json. Raises TypeError for foreign networks."""
    settings = dict(settings)
    config = {
        "format_version": FORMAT_VERSION,
        "model": describe(network),
        "schedule": schedule.to_config(),
        "prediction_type": settings.pop("prediction_type"),
        "sampler": settings,
        **extra,
    }
    save_folder(path, config, network.state_dict())


def _checked(config: dict[str, Any], path: str | PathLike[str]) -> dict[str, Any]:
    missing = [k for k in ("format_version", "model", "schedule", "prediction_type") if k not in config]
    if missing:
        raise ValueError(f"fastdiff.pretrained: expected the key {missing[0]!r} in {path}/config.json, got none.")
    if config["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"fastdiff.pretrained: expected format_version {FORMAT_VERSION} in {path}/config.json, got "
            f"{config['format_version']!r}. Update fastdiff."
        )
    return config
