"""A model folder of fastdiff.pretrained, or a shipped model's name: config.json beside
model.safetensors.
"""

from __future__ import annotations

from typing import Any

from ...pretrained import load, locate, read_config
from . import digest
from .conditioning import Classes, Conditioning
from .model import Model


def from_folder(name: str) -> Model:
    """The model of a folder. Raises FileNotFoundError and ValueError, each naming the file."""
    config = read_config(name)
    network, schedule, settings = load(name)
    about = getattr(network, "config", config["model"].get("config", {}))
    facts = {
        "kind": "folder",
        "name": name,
        "weights_sha256": digest.of_file(locate(name) / "model.safetensors"),
        "config": {
            key: config[key]
            for key in ("model", "schedule", "prediction_type", "sampler")
            if key in config
        },
    }
    takes: Conditioning | None = None
    if about.get("num_classes"):
        names = config.get("data", {}).get("classes", ())
        takes = Classes(
            about["num_classes"], names, null_label=getattr(network, "null_label", None)
        )
    return Model(
        network,
        _shape(name, about),
        schedule=schedule,
        settings=settings,
        conditions=takes,
        facts=facts,
    )


def _shape(name: str, about: dict[str, Any]) -> tuple[int, ...]:
    """One sample's, from the network's arguments."""
    if "dim" in about:
        return (about["dim"],)
    if "channels" in about and "size" in about:
        return (about["channels"], about["size"], about["size"])
    raise ValueError(
        f"fastdiff.jobs: expected a network of pictures or vectors in {name}, got one with the"
        f" arguments {sorted(about)}."
    )
