"""What every drop-in checks before its own methods run, and how torch.compile meets them.

`DropIn` puts `checked` around `step`, `scale_model_input` and `set_timesteps` of each class. The
methods keep their signatures, which pipelines inspect.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # imports Dynamo when it is called, not before
from torch.compiler import is_compiling

from ...whole import whole
from .repeated import repeating

Generators = torch.Generator | list[torch.Generator] | None
_STEP = ("model_output", "timestep", "sample")


def _step(method: Callable[..., Any]) -> Callable[..., Any]:
    eager, signature = _disable_dynamo(method), inspect.signature(method)
    names = list(signature.parameters)
    if names[1:4] != list(_STEP) and {*_STEP} <= {*names}:

        @functools.wraps(method)
        def bound(self: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return eager(self, *args, **kwargs)
            given = signature.bind(self, *args, **kwargs).arguments
            _arguments(self, *(given[name] for name in _STEP))
            return method(self, *args, **kwargs)

        return bound

    @functools.wraps(method)
    def step(
        self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # a step finds its row by memory addresses and a table on the host, which graphs cannot hold
        if is_compiling():
            return eager(self, model_output, timestep, sample, *args, **kwargs)
        if not self._own:  # a user's class may do anything
            _arguments(self, model_output, timestep, sample)
            return method(self, model_output, timestep, sample, *args, **kwargs)
        state = self._states.get()
        if state.following is not None:
            following = state.following
            found = following.step(self, state, model_output, timestep, sample, args, kwargs)
            if found is not None:
                return found
            state.following = None
        _arguments(self, model_output, timestep, sample)
        result = method(self, model_output, timestep, sample, *args, **kwargs)
        following = state.following
        if following is not None:
            given = (model_output, timestep, sample, result)
            if not following.confirmed(self, given, args, kwargs):
                state.following = None
            elif state.begun is not None:
                state.begun.share(following)
        return result

    return step


def _arguments(scheduler: Any, model_output: Any, timestep: Any, sample: Any) -> None:
    """Raises TypeError or ValueError unless these are two tensors and one timestep."""
    if not (isinstance(model_output, Tensor) and isinstance(sample, Tensor)):
        first = not isinstance(model_output, Tensor)
        raise TypeError(
            f"fastdiff.{type(scheduler).__name__}.step: expected"
            f" {'model_output' if first else 'sample'} as a tensor, got"
            f" {type(model_output if first else sample).__name__}. Pass torch tensors."
        )
    if not (isinstance(timestep, Tensor) and timestep.numel() == 1) and not scheduler._of_batch:
        one_timestep(f"{type(scheduler).__name__}.step", timestep)


def _scale_model_input(method: Callable[..., Any]) -> Callable[..., Any]:
    eager = _disable_dynamo(method)

    @functools.wraps(method)
    def scale_model_input(self: Any, sample: Any, timestep: Any = None) -> Any:
        if is_compiling():
            return eager(self, sample, timestep)
        if not (isinstance(timestep, Tensor) and timestep.numel() == 1):
            one_timestep(f"{type(self).__name__}.scale_model_input", timestep)
        return method(self, sample, timestep)

    return scale_model_input


def _set_timesteps(method: Callable[..., Any]) -> Callable[..., Any]:
    again = repeating(method)

    @functools.wraps(method)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps = args[0] if args else kwargs.get("num_inference_steps")
        if steps is not None:
            count = whole(steps)
            if count is None or count < 1:
                raise ValueError(
                    f"fastdiff.{type(self).__name__}.set_timesteps: expected num_inference_steps as"
                    f" an integer from 1 on, got {steps!r}. Pass the number of steps."
                )
        # a user's class may read what has no key
        return (again if self._own else method)(self, *args, **kwargs)

    return set_timesteps


_CHECKED = {
    "step": _step,
    "scale_model_input": _scale_model_input,
    "set_timesteps": _set_timesteps,
}


def checked(cls: type) -> None:
    """Puts the checks around the methods that a class defines."""
    for name, around in _CHECKED.items():
        if name in cls.__dict__:
            setattr(cls, name, around(cls.__dict__[name]))


def one_timestep(where: str, timestep: Any) -> None:
    """Raises TypeError or ValueError unless a timestep is one number."""
    if isinstance(timestep, Tensor):
        if timestep.numel() != 1:
            raise ValueError(
                f"fastdiff.{where}: expected one timestep for the whole batch, got a tensor of"
                f" shape {list(timestep.shape)}. Pass an element of scheduler.timesteps."
            )
    elif not hasattr(timestep, "__float__"):
        raise TypeError(
            f"fastdiff.{where}: expected a number or a tensor as timestep, got {timestep!r}. Pass"
            " an element of scheduler.timesteps."
        )


def generators(where: str, generator: Any, sample: Tensor) -> None:
    """Raises TypeError or ValueError unless there is one generator, or one for each sample."""
    batch = sample.shape[0] if sample.ndim else 1
    several = generator if isinstance(generator, (list, tuple)) else [generator]
    for one in several:
        if not isinstance(one, torch.Generator):
            raise TypeError(
                f"fastdiff.{where}.step: expected generator as a torch.Generator or a list of them,"
                f" got {type(one).__name__}. Pass torch.Generator().manual_seed(...)."
            )
    if isinstance(generator, (list, tuple)) and len(several) != 1 and len(several) < batch:
        raise ValueError(
            f"fastdiff.{where}.step: expected a generator for each of {batch} samples, got"
            f" {len(several)}. Pass one, or a list of {batch}."
        )
