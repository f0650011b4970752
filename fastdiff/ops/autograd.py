"""Ops with gradients: registered with torch.library, and called past its dispatcher where nobody
watches.

torch.library's gradients cost some 60 microseconds a call, the op of a small batch five. Whoever
traces, fakes, counts or transforms ops (torch.compile, FakeTensorMode, torch.func) gets the
registered op; plain tensors get a torch.autograd.Function of the same forward, the same saved
values and the same backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from . import common


def differentiable(
    name: str, launch: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Registers the gradients of fastdiff::<name> and returns how to call it.

    Args:
        launch: the op on real tensors. save(ctx, inputs, output) and backward(ctx, *gradients): as
            of torch.library.register_autograd; inner ops of `backward` are `inner`'s.
    """
    torch.library.register_autograd(f"fastdiff::{name}", backward, setup_context=save)
    dispatched = getattr(torch.ops.fastdiff, name).default

    def forward(ctx, *inputs):
        output = launch(*inputs)
        save(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
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
    """How a backward pass calls fastdiff::<name>, which has no gradients itself: torch says so
    where they are asked for.
    """
    dispatched = getattr(torch.ops.fastdiff, name).default

    def call(*inputs):
        if torch.is_grad_enabled() or not common.unobserved(
            *(v for v in inputs if isinstance(v, Tensor))
        ):
            return dispatched(*inputs)
        return launch(*inputs)

    return call
