"""Reads and writes model folders: a description in config.json, weights in model.safetensors.

config.json names the system (fastdiff.theory.registry) and its arguments. For a network with a
schedule, as a sampler needs it, it also holds the network, the schedule, the prediction type and
the default settings of a sampler. A folder without a system holds a denoiser. Nothing in a folder
is executed, unless it names the code of a network (`models.made_by`) and the caller trusts it. The
shipped models are folders next to this file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..models import build, describe
from ..models.build import check_trust, description_of
from ..outside import shown
from ..prediction import normalize
from ..schedule import Schedule
from ..theory import registry
from .checks import FLOATING, Header, built_within, check, check_sections, one_sentence
from .files import folder_of, read_header, read_json, read_tensors, save_folder

FORMAT_VERSION = 1
Weights = Callable[[], tuple[dict[str, torch.Tensor], Any]]  # reads them
# safetensors' names of the types that a module counts in
_NAMES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
NETWORKS = ("network", "encoder", "decoder")  # arguments of systems that are networks
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
    config = _checked(read_json(folder_of(locate(path)) / "config.json"), path)
    check_sections(config, _file(path))
    return config


class Drawer(NamedTuple):
    """How samples of a model folder are drawn: by a sampler, or by the system's own `sample`.

    Attributes:
        system: the folder's system, in eval mode; None for a folder of a network alone.
        network, schedule, settings: the arguments of `fastdiff.Sampler`; None, None and {} for a
            system that draws by `system.sample(n, seed=, sample_ids=)`.
    """

    system: Any
    network: torch.nn.Module | None
    schedule: Schedule | None
    settings: dict[str, Any]


def load(
    path: str | PathLike[str], *, trust: bool = False
) -> tuple[torch.nn.Module, Schedule, dict[str, Any]]:
    """Returns (network in eval mode, schedule, sampler settings) of a folder or a shipped model.

    trust: whether the code that the folder names as its network may run.

    Raises FileNotFoundError for a missing folder. Raises ValueError for files that can't be read or
    do not belong together, for systems that a sampler can't draw from, and for code without trust.
    """
    drawer = load_drawer(path, trust=trust)
    if drawer.network is None or drawer.schedule is None:
        raise ValueError(
            f"fastdiff.pretrained: expected a diffusion model in {shown(path)}, got the system"
            f" {registry.name_of(drawer.system)!r}. Draw samples with"
            " fastdiff.pretrained.load_system(path).sample(n, seed=…)."
        )
    return drawer.network, drawer.schedule, drawer.settings


def load_drawer(path: str | PathLike[str], *, trust: bool = False) -> Drawer:
    """Returns how to draw samples of a folder or a shipped model, with its networks in eval mode.

    trust: whether the code that the folder names as a network may run.

    Raises as `load` does; ValueError for a system without samples, such as a classifier.
    """
    config, header = _read(path, trust)
    tensors = functools.partial(read_tensors, locate(path) / "model.safetensors")
    system: Any = None
    if "system" in config:
        system = _system(config, header, tensors, path).eval()
        if not hasattr(system, "for_sampler"):
            if hasattr(system, "sample"):
                return Drawer(system, None, None, {})
            raise ValueError(
                f"fastdiff.pretrained: expected a system with samples in {shown(path)}, got the"
                f" system {config['system']['name']!r}. Evaluate it with `fastdiff eval"
                f" {shown(path)}`."
            )
        network, schedule, settings = system.for_sampler()
    else:
        name, settings = config["model"].get("factory", config["model"].get("class")), {}
        # the size of a network of trusted code is that code's business
        network = build(config["model"], trust) if "factory" in config["model"] else None
        with built_within(header, name, _file(path)):
            network = network or build(config["model"])
            schedule = Schedule.from_config(config["schedule"])
        _fill(network, header, tensors, name, path)
    if "prediction_type" in config:
        # an error of `normalize` names the types that there are
        settings |= {"prediction_type": normalize(config["prediction_type"])}
    return Drawer(system, network.eval(), schedule, settings | config.get("sampler", {}))


def load_system(path: str | PathLike[str], *, trust: bool = False) -> torch.nn.Module:
    """Returns the system of a folder or a shipped model, in eval mode.

    trust: whether the code that the folder names as a network may run. Raises as `load` does.
    """
    config, header = _read(path, trust)
    tensors = functools.partial(read_tensors, locate(path) / "model.safetensors")
    return _system(config, header, tensors, path).eval()


def save_system(path: str | PathLike[str], system: Any, **extra: Any) -> None:
    """Writes the folder of a system; `extra` (data, training) is stored in config.json.

    If the system has no weights except its network's, they are stored under the network's own
    names; the folder is then that of `save` plus the key "system".

    Raises TypeError for a system that is not in the registry, and for a network that nothing
    describes.
    """
    config: dict[str, Any] = {"format_version": FORMAT_VERSION}
    tensors = system.state_dict()
    if hasattr(system, "for_sampler"):
        network, schedule, settings = system.for_sampler()
        if description_of(network) is not None:
            config |= _sampling(network, schedule, settings)
            if all(k.startswith(_NETWORK) for k in tensors):
                tensors = {k.removeprefix(_NETWORK): v for k, v in tensors.items()}
    config["system"] = {"name": registry.name_of(system), "config": described(system)}
    save_folder(path, {**config, **extra}, tensors)


def described(system: Any) -> dict[str, Any]:
    """Returns the config of a system, with the descriptions of its networks.

    Raises TypeError for a network that nothing describes.
    """
    found = {part: describe(network) for part, network in _networks(system).items()}
    return dict(system.config) | found


def names_code(system: Any) -> bool:
    """Returns whether the folder of a system names code: it has a network with a factory."""
    found = [description_of(network) or {} for network in _networks(system).values()]
    return any("factory" in description for description in found)


def undescribed(system: Any) -> str | None:
    """Returns the class of a system's network that nothing describes, None where there is none."""
    for network in _networks(system).values():
        if description_of(network) is None:
            return type(network).__name__
    return None


def _networks(system: Any) -> dict[str, torch.nn.Module]:
    """Returns the networks of a system that its config describes or has no description of."""
    found = {k: getattr(system, k, None) for k in NETWORKS if k in system.config}
    return {
        k: v
        for k, v in found.items()
        if isinstance(v, torch.nn.Module) and not isinstance(system.config[k], str)
    }


def save(
    path: str | PathLike[str],
    network: Any,
    schedule: Schedule,
    settings: dict[str, Any],
    **extra: Any,
) -> None:
    """Writes the folder of a network; `extra` (data, training) is stored in config.json.

    Raises TypeError for a network that nothing describes: one that is neither of fastdiff.models
    nor has a factory (`models.made_by`).
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


def _file(path: str | PathLike[str]) -> str:
    return shown(f"{path}/config.json")


def factories(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the descriptions of networks in a folder's config that name code."""
    system = config.get("system", {})
    arguments = system.get("config", {}) if isinstance(system, dict) else {}
    parts = [arguments.get(k) for k in NETWORKS] if isinstance(arguments, dict) else []
    found = [config.get("model"), *parts]
    return [part for part in found if isinstance(part, dict) and "factory" in part]


def with_networks(
    config: dict[str, Any], trust: bool, where: str, named: Iterable[Any] = ()
) -> dict[str, Any]:
    """Returns a system's config with the networks that factories make in place of the factories.

    Args:
        config: of a system.
        trust: whether the factories may run.
        where: they are named, for messages.
        named: names of factories that may run without trust, because the user has named them.

    Raises ValueError for code without trust, and as `models.build` does.
    """
    code = {k: v for k, v in config.items() if k in NETWORKS and factories({"model": v})}
    for description in code.values():
        check_trust(description, trust or description["factory"] in list(named), where)
    return config | {k: build(v, trust=True) for k, v in code.items()}


def check_code(config: dict[str, Any], trust: bool, where: str) -> None:
    """Raises ValueError for a folder's config, of the place `where`, with code and no trust."""
    for description in factories(config):
        check_trust(description, trust, where)


def _read(path: str | PathLike[str], trust: bool) -> tuple[dict[str, Any], Header]:
    """Returns (config, header of the weights) of a folder, checked, before any weight is read."""
    folder = folder_of(locate(path))
    config = _checked(read_json(folder / "config.json"), path)
    header = read_header(folder / "model.safetensors")
    check(config, header, _file(path))
    check_code(config, trust, _file(path))
    return config, header


def _system(
    config: dict[str, Any], header: Header, tensors: Weights, path: str | PathLike[str]
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
    kind = registry.find(description["name"])
    # `_read` has asked for trust
    arguments = with_networks(description["config"], True, _file(path))
    with built_within(header, kind.__name__, _file(path)):
        system = kind(**arguments)
    names = system.state_dict().keys()
    if header.keys() != names and {_NETWORK + k for k in header} == names:
        header = {_NETWORK + k: v for k, v in header.items()}
        _fill(system, header, lambda: _prefixed(tensors()), kind.__name__, path)
    else:
        _fill(system, header, tensors, kind.__name__, path)
    return system


def _prefixed(found: tuple[dict[str, torch.Tensor], Any]) -> tuple[dict[str, torch.Tensor], Any]:
    return {_NETWORK + k: v for k, v in found[0].items()}, found[1]


def _fill(
    module: torch.nn.Module,
    header: Header,
    tensors: Weights,
    name: str,
    path: str | PathLike[str],
) -> None:
    """Loads all weights into the module.

    Raises ValueError, with the name of one of them, if they are those of another module, or of a
    type that is not theirs: floating where the module computes in floating point, and the same
    integers where it counts.
    """
    expected = module.state_dict()
    wrong = {k for k, v in expected.items() if k not in header or header[k][0] != v.shape} | (
        header.keys() - expected.keys()
    )
    if wrong:
        first = min(wrong)
        got = list(header[first][0]) if first in header else "nothing"
        raise ValueError(
            f"fastdiff.pretrained: expected the weights of the {name} in {_file(path)}, got"
            f" {got} for {shown(first)!r}. The two files do not belong together."
        )
    for key, value in expected.items():
        floating = value.is_floating_point()
        if header[key][1] not in (FLOATING if floating else {_NAMES.get(value.dtype)}):
            kind = " or ".join(sorted(FLOATING)) if floating else _NAMES.get(value.dtype)
            raise ValueError(
                f"fastdiff.pretrained: expected weights of type {kind} for {shown(key)!r} in"
                f" {shown(path)}/model.safetensors, got {header[key][1]}. Save them as float32."
            )
    with one_sentence(f"fastdiff.pretrained: expected the weights of the {name} in {_file(path)}"):
        module.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors()[0].items()})


def _checked(config: dict[str, Any], path: str | PathLike[str]) -> dict[str, Any]:
    """Returns the config. Raises ValueError for missing keys and another format version."""
    needed = ("system",) if "system" in config else ("model", "schedule", "prediction_type")
    missing = [k for k in ("format_version", *needed) if k not in config]
    if missing:
        raise ValueError(
            f"fastdiff.pretrained: expected the key {missing[0]!r} in {_file(path)}, got none."
        )
    if type(config["format_version"]) is not int or config["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"fastdiff.pretrained: expected format_version {FORMAT_VERSION} in {_file(path)},"
            f" got {shown(repr(config['format_version']))[:40]}. Update fastdiff."
        )
    return config
