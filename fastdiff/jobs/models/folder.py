"""Opens a shipped model, or a folder of fastdiff.pretrained: config.json, model.safetensors."""

from __future__ import annotations

from typing import Any

from ...pretrained import Drawer, load_drawer, locate, read_config
from ...pretrained.folders import factories
from . import digest
from .conditioning import Classes, Conditioning
from .model import Model
from .own_network import own_conditions, sources
from .pictures import SmallPictures

_KEYS = ("model", "schedule", "prediction_type", "sampler")
ENLARGES = ("factor", "reduce", "enlarge")  # the members of a system of super-resolution


def from_folder(name: str, trust: bool = False) -> Model:
    """Returns the model of a folder. Raises FileNotFoundError and ValueError that name the file.

    A diffusion model is drawn by a sampler, a latent-variable model by its system's own `sample`.

    trust: whether the code that the folder names as its network may run.
    """
    config = read_config(name)
    drawer = load_drawer(name, trust=trust)
    facts: dict[str, Any] = {
        "kind": "folder",
        "name": name,
        "weights_sha256": digest.of_file(locate(name) / "model.safetensors"),
        "config": {key: config[key] for key in _KEYS if key in config},
        **sources(config),
    }
    if not {"model", "schedule"} <= config.keys():  # only the system says what the samples are
        facts["config"]["system"] = config["system"]
    arguments = _arguments(drawer)
    shape = _shape(name, config, drawer, arguments)
    if drawer.network is None:
        return Model(drawer.system, shape, draw=drawer.system.sample, facts=facts)
    return Model(
        drawer.network,
        shape,
        schedule=drawer.schedule,
        settings=drawer.settings,
        conditions=_conditions(config, drawer, shape, arguments),
        facts=facts,
    )


def _arguments(drawer: Drawer) -> dict[str, Any]:
    """Returns the arguments that the network is built with; {} where they are not known."""
    inner = getattr(drawer.system, "network", drawer.network)
    config = getattr(inner, "config", None)
    return dict(config) if isinstance(config, dict) else {}


def _conditions(
    config: dict[str, Any], drawer: Drawer, shape: tuple[int, ...], arguments: dict[str, Any]
) -> Conditioning | None:
    """Returns what the samples are conditioned on: classes, small pictures, or nothing (None)."""
    system = drawer.system
    if all(hasattr(system, member) for member in ENLARGES):
        return SmallPictures(shape, system.factor, system.reduce, system.enlarge)
    if factories(config):
        return own_conditions(config, drawer.network)
    if not arguments.get("num_classes"):
        return None
    inner = getattr(system, "network", drawer.network)
    return Classes(
        arguments["num_classes"],
        config.get("data", {}).get("classes", ()),
        null_label=getattr(inner, "null_label", None),
    )


def _shape(
    name: str, config: dict[str, Any], drawer: Drawer, arguments: dict[str, Any]
) -> tuple[int, ...]:
    """Returns the shape of one sample: the system's, the network's input's, or the data's."""
    shape = getattr(drawer.system, "shape", None)
    known = config.get("data", {}).get("shape")
    if known and factories(config):  # the user's network need not say it
        return tuple(known)
    if shape is not None:
        return tuple(shape)
    if "dim" in arguments:
        return (arguments["dim"],)
    if "channels" in arguments and "size" in arguments:
        return (arguments["channels"], arguments["size"], arguments["size"])
    if known:
        return tuple(known)
    raise ValueError(
        f"fastdiff.jobs: expected a network of pictures or vectors in {name}, got one with the"
        f" arguments {sorted(arguments)}."
    )
