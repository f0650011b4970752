"""A second module tree over the same weights, in which modules may compute differently.

Every module is copied without its weights: the copy's parameters are new `Parameter` objects over
the same memory. A weight that is changed in place is changed in both trees, while `to`,
`requires_grad_` and gradients of one do not reach the other. A copy that computes differently has a
class derived from the original's with the same name, so `config`, `state_dict`, pickle and code
that checks the class see the original.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..grad_mode import restored
from .contents import Contents

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def share(module: nn.Module, change: Callable[[nn.Module], None]) -> nn.Module:
    """Returns a second tree over the same memory; `change` gets each module after its children."""
    return _share(module, change, {}, {})


def _share(
    module: nn.Module,
    change: Callable[[nn.Module], None],
    modules: dict[int, nn.Module],
    tensors: dict[int, Any],
) -> nn.Module:
    if id(module) in modules:
        return modules[id(module)]
    new = modules[id(module)] = module.__class__.__new__(module.__class__)
    state = dict(module.__dict__)
    for name in _HOOKS:
        if name in state:
            state[name] = state[name].copy()
    state["_parameters"] = {k: _parameter(p, tensors) for k, p in module._parameters.items()}
    state["_buffers"] = dict(module._buffers)
    state["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    state["_modules"] = {}
    new.__dict__.update(state)
    for name, child in module._modules.items():
        new._modules[name] = None if child is None else _share(child, change, modules, tensors)
    change(new)
    return new


def _parameter(parameter: nn.Parameter | None, tensors: dict[int, Any]) -> nn.Parameter | None:
    if parameter is None:
        return None
    if id(parameter) not in tensors:  # tied weights stay tied
        new = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        tensors[id(parameter)] = new if type(parameter) is nn.Parameter else parameter
    return tensors[id(parameter)]


def mix_in(module: nn.Module, mixin: type, **attributes: Any) -> None:
    """Gives a module of a shared tree the methods of `mixin`, and these attributes."""
    module.__dict__.update(attributes)
    base: Any = type(module)
    module.__class__ = derived(mixin, base)


@functools.lru_cache(maxsize=1024)  # of the user's classes
def derived(mixin: type, base: type) -> type:
    """Returns `base` with the mixin's methods, under the name of `base`."""

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return (
            _rebuild,
            (mixin, base),
            self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__,
        )

    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__reduce_ex__": reduce,
    }
    return type(base.__name__, (mixin, base), members | {"__doc__": base.__doc__})


def _rebuild(mixin: type, base: type) -> Any:
    cls: Any = derived(mixin, base)
    return cls.__new__(cls)


def plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this class, and nothing was put on it.

    Then its formula may be computed elsewhere. What may be put on a module are hooks, a forward of
    its own, and a parametrization or an adapter, which change its class. A module that computes the
    formula of others asks at every call, because they may be changed at any time.
    """
    return module.__class__ is kind and untouched(module)


def untouched(module: nn.Module) -> bool:
    """Whether a module has no hooks and no forward of its own."""
    state = module.__dict__
    return not (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def differentiates(*values: Tensor | None) -> bool:
    """Whether autograd records operations on these tensors."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in values)


class Prepared:
    """A value computed from weights once, and again after they were moved or changed.

    On the CPU the weights are looked at by their contents (`contents`), because `.data` can be
    written without a trace. A GPU is not read from the host; there the value is computed at every
    call, unless `by_version`.

    It is not pickled.

    Args:
        by_version: whether a value on a GPU is kept until torch counts a change of a weight. Writes
            through `.data` are not counted.
    """

    def __init__(self, by_version: bool = False) -> None:
        self._by_version = by_version
        self._held: tuple[Any, Any, Any] = (None, None, None)

    @restored
    def get(self, weights: tuple[Tensor | None, ...], make: Callable[..., Any]) -> Any:
        if torch.compiler.is_compiling():  # the compiler decides what to keep
            return make(*weights)
        given = [w for w in weights if w is not None]
        here = all([w.is_cpu for w in given])
        if not here:
            if not self._by_version:
                return make(*weights)
            given = []  # nothing is read from the device
        key = [None if w is None else _place(w) for w in weights]
        held = self._held  # read once: threads share the network
        if held[0] != key or not held[1].unchanged(given):
            with torch.no_grad():
                held = key, Contents(given), make(*weights)
            self._held = held
        return held[2]

    def __reduce__(self) -> Any:
        return Prepared, (self._by_version,)

    def __deepcopy__(self, memo: Any) -> Prepared:
        return Prepared(self._by_version)


def _place(weight: Tensor) -> tuple[Any, ...]:
    """Returns a weight's address, shape and strides, and torch's count of its changes."""
    version = -1 if weight.is_inference() else weight._version
    return (
        weight.data_ptr(),
        version,
        weight.dtype,
        weight.device,
        weight.shape,
        weight.stride(),
    )
