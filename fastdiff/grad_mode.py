"""Gradient mode that survives whatever interrupts a call.

Python runs signal handlers between bytecodes, so a handler that raises may interrupt torch's
`no_grad` after it has switched gradients off and before its `with` block would switch them on
again. What has to be undone is therefore undone here by a `finally`, which does nothing but one
call of a C function: Python looks for signals after such a call and not before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_set = torch._C._set_grad_enabled


def restored(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that leaves the gradient mode as it was, also where it is interrupted.

    It is put on every function that changes the mode, outside of torch's own decorators.
    """

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():  # no signal interrupts a trace, which may lack `finally`
            return function(*arguments, **keywords)
        before = torch.is_grad_enabled()
        try:
            return function(*arguments, **keywords)
        finally:
            _set(before)

    return call


def outside_inference(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function whose new tensors may meet autograd later: it runs outside of inference mode.

    Where inference mode is off nothing changes. torch's `inference_mode(False)` switches gradients
    on even there, and a guard that an interrupt leaves behind would set them when it is freed.
    """

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        if not torch.is_inference_mode_enabled():
            return function(*arguments, **keywords)
        with torch.inference_mode(False):
            return function(*arguments, **keywords)

    return call


def each_restored(values: Iterable[Result]) -> Iterator[Result]:
    """Yields these values, which are computed on the way, with the gradient mode as it was."""
    iterator = iter(values)
    while True:
        before = torch.is_grad_enabled()
        try:
            value = next(iterator)
        except StopIteration:
            return
        finally:
            _set(before)
        yield value
