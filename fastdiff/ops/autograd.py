"""Gradients of the ops: registered with torch.library, and a shorter way for plain tensors.

The gradients of torch.library cost about 60 microseconds a call, an op on a small batch about five.
Where ops are traced, faked or counted (torch.compile, FakeTensorMode, dispatch modes), the
registered op is called. For plain tensors a torch.autograd.Function with the same forward pass, the
same saved values and the same backward pass is called instead. Where ops are transformed
(torch.func, forward-mode tangents), and where a gradient is differentiated again, the op's formula
takes the kernel's place (fastdiff.ops.formulas).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import choice
from ..grad_mode import restored
from . import common


def differentiable(
    name: str,
    launch: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
    formula: Callable[..., Any],
) -> Callable[..., Any]:
    """Registers the gradients of fastdiff::<name> and returns the function that calls the op.

    Args:
        launch: executes the op on real tensors.
        save, backward: save(ctx, inputs, output) and backward(ctx, *gradients), as in
            torch.library.register_autograd. A backward pass that needs a kernel calls it through
            `inner`, and one that is to be differentiated again uses `by_formula`.
        formula: computes the op by differentiable functions, for forward-mode derivatives and the
            transforms of torch.func.

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
        if common.unobserved(*tensors):
            if not forward_mode():
                return function.apply(*inputs) if recorded(tensors) else launch(*inputs)
        elif torch.compiler.is_compiling():
            return dispatched(*inputs)
        return formula(*inputs) if transformed(tensors) else dispatched(*inputs)

    return call


def forward_mode() -> bool:
    """Whether tensors may carry forward-mode tangents."""
    return torch.autograd.forward_ad._current_level >= 0


def transformed(tensors: Iterable[Tensor]) -> bool:
    """Whether torch.func transforms the call, or a tensor carries a forward-mode tangent."""
    top = torch._C._functorch.peek_interpreter_stack()
    if top is not None and top.key() in _TRANSFORMS:
        return True
    return forward_mode() and any(
        torch.autograd.forward_ad.unpack_dual(v).tangent is not None for v in tensors
    )


_KIND = torch._C._functorch.TransformType
_TRANSFORMS = (_KIND.Grad, _KIND.Jvp, _KIND.Vmap)


@restored
def by_formula(
    formula: Callable[..., Any], inputs: Sequence[Any], needed: Sequence[bool], *gradients: Any
) -> list[Tensor | None]:
    """Returns the gradients of a formula by its inputs.

    They can be differentiated again if autograd records: a backward pass asks
    torch.is_grad_enabled().

    Args:
        inputs: of the formula, as autograd saved them.
        needed: for each of them, whether its gradient is wanted.
        gradients: of the outputs; None for an output that the result does not depend on.
    """
    wanted = [i for i, yes in enumerate(needed) if yes and isinstance(inputs[i], Tensor)]
    if not wanted:  # as where only a table asks for one, which has none
        return [None] * len(inputs)
    again, seen = torch.is_grad_enabled(), list(inputs)
    with torch.enable_grad():
        for i in wanted:  # aliases, so that two inputs which are one tensor get a gradient each
            seen[i] = seen[i].view_as(seen[i]) if again else seen[i].detach().requires_grad_()
        outputs = formula(*seen)
    pairs = [
        (out, grad)
        for out, grad in zip(
            outputs if isinstance(outputs, tuple) else (outputs,), gradients, strict=False
        )
        if grad is not None and out.requires_grad
    ]
    result: list[Tensor | None] = [None] * len(inputs)
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        [seen[i] for i in wanted],
        [grad for _, grad in pairs],
        create_graph=again,
        allow_unused=True,
    )
    for i, grad in zip(wanted, found, strict=True):
        result[i] = grad
    return result


def recorded(tensors: Iterable[Tensor]) -> bool:
    """Whether autograd records an op on these tensors."""
    if torch.is_grad_enabled():
        for value in tensors:
            if value.requires_grad:
                return True
    return False


def inner(name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function by which a backward pass calls the kernel fastdiff::<name>.

    That op has no gradients: a backward pass that records them uses `by_formula` instead.
    """
    dispatched = getattr(torch.ops.fastdiff, name).default

    def call(*inputs):
        if common.unobserved(*(v for v in inputs if isinstance(v, Tensor))):
            return launch(*inputs)
        return dispatched(*inputs)

    return call
