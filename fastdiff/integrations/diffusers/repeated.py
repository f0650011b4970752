"""Runs that begin like an earlier run of the same scheduler: `set_timesteps` computes nothing anew.

Pipelines call `set_timesteps` with the same arguments for every picture, and the grid, its points
and the search for its traced plans take longer than the first steps of a small model. `repeating`
is put around the method of each class. It keeps what a call has made under everything that the call
could read: its arguments, the scheduler's attributes, and the run's number of steps. Tensors count
by identity and version, so an edited table is another key. Calls are computed as usual where an
argument has no such key, where ops are observed, and in classes that are not fastdiff's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops import common
from . import tables
from .following import Following
from .state import State

_BY_VALUE = frozenset({bool, int, float, str, type(None), torch.device, torch.dtype})
_BY_IDENTITY = frozenset({FunctionType})
_modes = getattr(torch._C, "_len_torch_function_stack", None)  # how many change what is computed
# The first two have keys of their own. The third one tells whether scale_model_input was called.
_APART = frozenset({"_states", "_internal_dict", "is_scale_input_called"})


class _NoKey(Exception):
    """A value has no key: nothing shows whether it is the same the next time."""


@dataclass
class Begun:
    """What a call of `set_timesteps` made.

    Attributes:
        state: as the run began; no run has its tables.
        holds: what the key names by identity, so that nothing else gets that identity.
        following: how a run's first steps are taken, once they were; see `following`.
    """

    state: State
    holds: list[Any]
    following: Following | None = None

    def again(self) -> State:
        """The state of another run."""
        state = self.state.again()
        state.begun, state.following = self, self.following
        return state

    def share(self, following: Following) -> None:
        """Makes later runs take their steps like this one, if they are on the same tables."""
        if following.first == 0 and following.plans is self.state.plans:
            self.following = following


def repeating(method: Callable[..., None]) -> Callable[..., None]:
    """The method `set_timesteps`, which repeats what an equal call has made."""

    @functools.wraps(method)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        holds: list[Any] = []
        key = _key(self, args, kwargs, holds)
        if key is None:
            return method(self, *args, **kwargs)
        begun = self._states.begun(key)
        if begun is not None:
            self._states.set(begun.again())
            return None
        method(self, *args, **kwargs)
        before, key = key, _key(self, args, kwargs, holds := [])
        # the next such call finds the number of steps that this one has set
        if key is not None and key[:-1] == before[:-1]:
            state = self._states.get()
            state.share_plans(self._states, self._internal_dict)
            state.begun = Begun(state.again(), holds)
            self._states.keep(key, state.begun)
        return None

    return set_timesteps


def _key(
    scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], holds: list[Any]
) -> tuple[Any, ...] | None:
    """The key of a call, with what it names by identity in `holds`; None if it has none."""
    if common.observed() or _modes is None or _modes():
        return None
    config = scheduler._internal_dict
    holds.append(config)
    try:
        attributes = [
            (name, _of(value, holds))
            for name, value in scheduler.__dict__.copy().items()  # other threads may set some
            if name not in _APART
        ]
        given = tuple([_of(value, holds) for value in args])
        named = tuple([(name, _of(value, holds)) for name, value in kwargs.items()])
    except _NoKey:
        return None
    steps = scheduler._states.get().num_inference_steps
    return (given, named, tuple(attributes), id(config), tables.FLOAT, _of(steps, holds))


def _of(value: Any, holds: list[Any]) -> Hashable:
    """A value's key. Raises _NoKey where it has none."""
    cls = value.__class__
    if cls in _BY_VALUE:
        return cls, value
    if cls is Tensor and not value.is_inference():
        holds.append(value)
        return cls, id(value), value._version
    if cls is list or cls is tuple:
        return cls, tuple([_of(each, holds) for each in value])
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return cls, value.dtype.str, value.shape, value.tobytes()
    if cls in _BY_IDENTITY:
        holds.append(value)
        return cls, id(value)
    raise _NoKey
