"""Gradients of the ops: registered with torch.library, and a shorter way for plain tensors.

The gradients of torch.library cost about 60 microseconds a call, an op on a small batch about five.
Where ops are traced, faked, counted or transformed (torch.compile, FakeTensorMode, torch.func), the
registered op is called. For plain tensors a torch.autograd.Function with the same forward pass, the
same saved values and the same backward pass is called instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..backend import choice
from . import common


def differentiable(
    name: str, launch: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Registers the gradients of fastdiff::<name> and returns the function that calls the op.

    Args:
        launch: executes the op on real tensors.
        save, backward: save(ctx, inputs, output) and backward(ctx, *gradients), as in
            torch.library.register_autograd. Ops inside `backward` are called through `inner`.

    The backward pass runs on the backend that was chosen for the forward pass: autograd may run it
    in a thread of its own, where no `fastdiff.use` is in effect, or after the block has ended.
    (A compiled backward pass has no such note; it chooses where it runs.)
    """

    def save_all(ctx, inputs, output):
        ctx.backend = choice.chosen()
        save(ctx, inputs, output)

    def backward_there(ctx, *gradients):
        if ctx.backend == choice.chosen():
            return backward(ctx, *gradients)
        with choice.use(ctx.backend):
            return backward(ctx, *gradients)

    torch.library.register_autograd(f"fastdiff::{name}", backward_there, setup_context=save_all)
    dispatched = getattr(torch.ops.fastdiff, name).default

    def forward(ctx, *inputs):
        output = launch(*inputs)
        save_all(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward_there)}
    function: Any = type(name, (torch.autograd.Function,), members)

    def call(*inputs):
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not common.unobserved(*tensors):
            return dispatched(*inputs)
        return function.apply(*inputs) if recorded(tensors) else launch(*inputs)

    return call


def recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether autograd records an op on these tensors."""
    if torch.is_grad_enabled():
        for value in tensors:
            if value.requires_grad:
                return True
    return False


def inner(name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function by which a backward pass calls fastdiff::<name>.

    That op has no gradients; where they are needed, torch raises an error.
    """
    dispatched = getattr(torch.ops.fastdiff, name).default

    def call(*inputs):
        if torch.is_grad_enabled() or not common.unobserved(
            *(v for v in inputs if isinstance(v, Tensor))
        ):
            return dispatched(*inputs)
        return launch(*inputs)

    return call
