"""What a captured step depends on besides its buffers: the network's modules, weights and numbers.

A CUDA graph replays the kernels of its capture. A network that has changed since, by another
adapter, hook, weight or number, must be captured again.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..backend import choice

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_PLAIN_TYPES = frozenset(_PLAIN)
_CONTAINERS = frozenset({dict, OrderedDict, set, list, tuple})
_DEEPEST = 6  # levels of containers and objects that are looked into


def fingerprint(model: Any) -> Hashable:
    """Returns a value that differs after a change of the network or of torch's settings.

    Looked at are modules with their hooks and plain attributes, the memory of parameters and
    buffers and the versions of parameters, the closures and defaults of functions, and objects with
    attributes, to a depth of 6.
    """
    return _settings(), _Look().at(model, 0)


def _settings() -> Hashable:
    """Returns torch's settings that choose kernels, and the backend in use."""
    backends = torch.backends
    return (
        choice.chosen(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
    )


class _Identity:
    """An object that equals itself only, and that lives as long as it is compared."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


class _Look:
    """One look at an object and what hangs on it; objects seen before count by their order."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # so that no id is used twice

    def at(self, value: Any, depth: int) -> Hashable:
        kind = value.__class__
        if kind in _PLAIN_TYPES:
            return value if value == value else "nan"
        if kind in _CONTAINERS and not value:
            return kind  # most attributes of a module are empty
        if isinstance(value, Tensor):
            where = None if value.is_meta else _memory(value)
            version = 0  # of a weight: a network may keep what it has made from it
            if kind is nn.Parameter and not value.is_inference():
                version = value._version
            return where, version, value.shape, value.stride(), value.dtype, value.device
        number = self._seen.get(id(value))
        if number is not None:
            return ("again", number)
        self._seen[id(value)] = len(self._seen)
        self._held.append(value)
        if depth >= _DEEPEST and not isinstance(value, nn.Module):
            return _Identity(value)
        if isinstance(value, nn.Module):
            return self._module(value, depth)
        return self._other(value, depth + 1)

    def _module(self, module: nn.Module, depth: int) -> Hashable:
        # parameters, buffers, modules and hooks are dicts among a module's attributes
        code = getattr(type(module).forward, "__code__", None)
        return type(module), code, self._attributes(vars(module), depth)

    def _attributes(self, values: dict[str, Any], depth: int) -> Hashable:
        return tuple((name, self.at(value, depth)) for name, value in values.items())

    def _other(self, value: Any, depth: int) -> Hashable:
        kind = type(value)
        if isinstance(value, dict):
            items = tuple((self.at(k, depth), self.at(v, depth)) for k, v in value.items())
            return kind, items
        if isinstance(value, (list, tuple, set, frozenset)):
            return kind, tuple(self.at(v, depth) for v in value)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return kind, tuple(self.at(v, depth) for v in parts)
        if isinstance(value, types.MethodType):
            return self.at(value.__func__, depth), self.at(value.__self__, depth)
        if isinstance(value, types.FunctionType):
            cells = tuple(self._cell(cell, depth) for cell in value.__closure__ or ())
            given = self.at((value.__defaults__, value.__kwdefaults__), depth)
            return value.__code__, cells, given, self._globals(value, depth)
        if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            return _Identity(value)
        attributes = getattr(value, "__dict__", None)
        if kind.__module__.startswith("torch."):  # what torch keeps for itself changes at any time
            attributes = None
        return (
            kind,
            _Identity(value),
            None if attributes is None else self._attributes(attributes, depth),
        )

    def _cell(self, cell: Any, depth: int) -> Hashable:
        try:
            return self.at(cell.cell_contents, depth)
        except ValueError:
            return "empty"

    def _globals(self, function: types.FunctionType, depth: int) -> Hashable:
        """Returns the plain numbers and tensors among the globals that a function names."""
        found = []
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, (*_PLAIN, Tensor, nn.Module)) and value is not None:
                found.append((name, self.at(value, depth)))
        return tuple(found)


def _memory(value: Tensor) -> Hashable:
    try:
        return value.data_ptr()
    except RuntimeError:  # tensors without memory of their own
        return id(value)
