"""Opens a shipped model, or a folder of fastdiff.pretrained: config.json, model.safetensors."""

from __future__ import annotations

from typing import Any

from ...pretrained import load, locate, read_config
from . import digest
from .conditioning import Classes, Conditioning
from .model import Model


def from_folder(name: str) -> Model:
    """Returns the model of a folder. Raises FileNotFoundError and ValueError that name the file."""
    config = read_config(name)
    network, schedule, settings = load(name)
    # a system's folder may say nothing of a network
    arguments = getattr(network, "config", config.get("model", {}).get("config", {}))
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
    conditions: Conditioning | None = None
    if arguments.get("num_classes"):
        names = config.get("data", {}).get("classes", ())
        conditions = Classes(
            arguments["num_classes"], names, null_label=getattr(network, "null_label", None)
        )
    return Model(
        network,
        _shape(name, arguments),
        schedule=schedule,
        settings=settings,
        conditions=conditions,
        facts=facts,
    )


def _shape(name: str, arguments: dict[str, Any]) -> tuple[int, ...]:
    """Returns the shape of one sample, from the arguments that the network is built with."""
    if "dim" in arguments:
        return (arguments["dim"],)
    if "channels" in arguments and "size" in arguments:
        return (arguments["channels"], arguments["size"], arguments["size"])
    raise ValueError(
        f"fastdiff.jobs: expected a network of pictures or vectors in {name}, got one with the"
        f" arguments {sorted(arguments)}."
    )
