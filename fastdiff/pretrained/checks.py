"""Checks a model folder's config before anything is built from it.

The config and the weights may be anyone's. A wrong type, a number that would fill the memory, and a
network other than that of the weights are refused while they are still text: `check` compares the
values with the arguments that they are for, and `built_within` stops a constructor that makes more
than the weights file has.
"""

from __future__ import annotations

import inspect
import math
import threading
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.modules import module as torch_module

from ..models import MODELS
from ..outside import shown
from ..schedule import Schedule
from ..theory import registry
from ..user_code import is_name

Header = Mapping[str, tuple[tuple[int, ...], str]]
FLOATING = {"F64", "F32", "F16", "BF16"}
_LARGEST = 1_000_000  # a whole number in a config, unless the weights have more elements
_STEPS = 10_000  # a whole number among the settings of a sampler
_TABLES = {"betas", "alphas_cumprod", "log_snr"}
_SETTINGS: dict[str, Any] = {
    "solver": str,
    "steps": int | None,
    "order": int | None,
    "eta": float | None,
    "guidance_scale": float | list[float],
    "clip_range": float | None,
    "timestep_spacing": str | list[float],
}
_SECTIONS = ("model", "schedule", "system", "sampler", "data", "training")


def check(config: Mapping[str, Any], header: Header, file: str) -> None:
    """Compares a config's values with what they are for, and with the size of the weights.

    Args:
        config: of a model folder.
        header: names, shapes and types of its weights.
        file: its name, for messages.

    Raises ValueError in one sentence.
    """
    check_sections(config, file)
    limit = max(_LARGEST, elements(header))
    for section in ("model", "system", "schedule"):
        _bounded(config.get(section), limit, section, file)
    settings = config.get("sampler", {})
    _bounded(settings, _STEPS, "sampler", file)
    _types(settings, _SETTINGS, "sampler", file)
    if "system" in config:
        system = config["system"]
        if not {"name", "config"} <= system.keys() or not isinstance(system["name"], str):
            raise ValueError(
                f"fastdiff.pretrained: expected a name and a config under 'system' in {file}."
            )
        _arguments(registry.find(system["name"]), system["config"], "system.config", file)
    if "model" in config:
        _described(config["model"], "model", file)
    if "schedule" in config:
        _schedule(config["schedule"], "schedule", file)
    if "label_dropout" in config.get("training", {}):
        _types(config["training"], {"label_dropout": float}, "training", file)


def check_sections(config: Mapping[str, Any], file: str) -> None:
    """Refuses parts of the config that are no objects, and names that are no texts."""
    for section in _SECTIONS:
        if section in config and not isinstance(config[section], dict):
            _refuse(section, "an object", config[section], file)
    _types(config, {"prediction_type": str}, "", file)
    data = config.get("data", {})
    _types(data, {"name": str, "classes": list[str]}, "data", file)


def elements(header: Header) -> int:
    """Returns the number of elements of all tensors."""
    return sum(math.prod(shape) for shape, _ in header.values())


@contextmanager
def built_within(header: Header, what: str, file: str) -> Iterator[None]:
    """Stops the construction of a module that has more tensors or elements than the weights.

    A depth of 10⁹ would otherwise take hours, and a width of 10⁹ all memory. Twice the tensors and
    elements are permitted, because some modules assign a parameter twice; the caller compares names
    and shapes exactly. Other errors of the constructor become one sentence too.
    """
    tensors, size = 2 * len(header) + 64, 2 * elements(header) + _LARGEST
    here, count, total = threading.get_ident(), 0, 0

    def made(module: Any, name: str, value: Tensor | None) -> None:
        nonlocal count, total
        if threading.get_ident() == here and isinstance(value, Tensor):
            count, total = count + 1, total + value.numel()
            if count > tensors or total > size:
                raise ValueError(
                    f"fastdiff.pretrained: expected the {what} of {file} to fit its weights, which"
                    f" have {len(header)} tensors of {elements(header)} elements, got a larger one."
                    " The two files do not belong together."
                )

    hooks = [
        torch_module.register_module_parameter_registration_hook(made),
        torch_module.register_module_buffer_registration_hook(made),
    ]
    try:
        with one_sentence(f"fastdiff.pretrained: expected the arguments of a {what} in {file}"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def one_sentence(expected: str) -> Iterator[None]:
    """Turns any error of the block that is not fastdiff's own into ValueError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ValueError, TypeError, ImportError)) and str(error).startswith(
            "fastdiff"
        ):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{expected}, got {type(error).__name__}: {shown(reason)}.") from None


def _described(value: Any, name: str, file: str) -> None:
    """Checks {"class": name, "config": arguments} of a network, or {"factory": name, …}."""
    if isinstance(value, dict) and "factory" in value:
        if not is_name(value["factory"]):
            _refuse(f"{name}.factory", "a name of code (module:function)", value["factory"], file)
        if "class" in value or not isinstance(value.get("config", {}), dict):
            _refuse(name, "a factory with its config, and no class", sorted(value), file)
        return  # its arguments are for code that is asked about first
    if not isinstance(value, dict) or not isinstance(value.get("class"), str):
        _refuse(name, "an object with the class of a network", value, file)
    if value["class"] in MODELS:  # `build` names the others
        _arguments(MODELS[value["class"]], value.get("config", {}), f"{name}.config", file)


def _schedule(value: dict[str, Any], name: str, file: str) -> None:
    constructor = value.get("name")
    if not isinstance(constructor, str):
        _refuse(f"{name}.name", "a text", constructor, file)
    function = getattr(Schedule, constructor, None)
    if not constructor.startswith("_") and callable(function):
        rest = {k: v for k, v in value.items() if k not in ("name", "zero_terminal_snr")}
        _arguments(function, rest, name, file)
    _types(value, {"zero_terminal_snr": bool}, name, file)


def _arguments(function: Any, values: Any, name: str, file: str) -> None:
    """Compares the values with the annotations of a function's or class's arguments."""
    if not isinstance(values, dict):
        _refuse(name, "an object", values, file)
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for key, value in values.items():
        if key in ("network", "encoder", "decoder") and isinstance(value, dict):
            _described(value, f"{name}.{key}", file)
        elif key == "schedule" and isinstance(value, dict):
            _schedule(value, f"{name}.{key}", file)
        elif key in _TABLES:
            if not fits(value, list[float]):
                _refuse(f"{name}.{key}", "a list of numbers", value, file)
        else:
            _types({key: value}, hints, name, file)


def _types(values: Mapping[str, Any], hints: Mapping[str, Any], name: str, file: str) -> None:
    for key, hint in hints.items():
        if key in values and not fits(values[key], hint):
            _refuse(f"{name}.{key}" if name else key, _words(hint), values[key], file)


def _refuse(name: str, expected: str, got: Any, file: str) -> typing.NoReturn:
    text = shown(repr(got))
    text = text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"
    raise ValueError(
        f"fastdiff.pretrained: expected {expected} as {shown(name)!r} in {file}, got {text}."
    )


def _bounded(value: Any, limit: int, name: str, file: str) -> None:
    """Refuses whole numbers beyond a limit, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _bounded(inner, limit, f"{name}.{key}", file)
    elif isinstance(value, list):
        for inner in value:
            _bounded(inner, limit, name, file)
    elif type(value) is int and abs(value) > limit:
        _refuse(name, f"a number up to {limit}", value, file)


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value can be an argument of this annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if value is None or hint in (None, type(None)):
        return value is None and hint in (None, type(None))
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and all(fits(v, inner[0]) for v in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(v, inner[1]) for v in value.values())
    return hint in (int, str, dict, list) and type(value) is hint


def _words(hint: Any) -> str:
    """Returns what an annotation stands for, in words."""
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in typing.get_args(hint)))
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return "a list"
    return "null" if hint in (None, type(None)) else plain.get(hint, "an object")
