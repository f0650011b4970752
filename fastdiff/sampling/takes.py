"""Which conditions a network takes, and what stands for none of them.

A network is called as network(x, t, **cond). Labels are the argument `y`. A network may say what
"no condition" is, for classifier-free guidance (Ho & Salimans 2022):

    null_label      the label that means no class; a missing one, or None, says that there is none
    null_cond       {argument: tensor}, one sample's value of every other condition; a learned
                    `nn.ParameterDict` too. Zeros stand in for a floating condition that it lacks.
    conditioned     of a module that passes its conditions on: the network that takes them
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LABEL = "y"


def network_arguments(
    network: Callable[..., Any],
) -> tuple[frozenset[str] | None, frozenset[str]]:
    """Returns (names of a network's arguments after x and t, those that are required).

    The names are None where the network takes any keyword argument.
    """
    network = innermost(network)
    function = network.forward if isinstance(network, nn.Module) else network
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None, frozenset()
    named = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)
    ][2:]
    required = frozenset(p.name for p in named if p.default is p.empty)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return (None if open_ended else frozenset(p.name for p in named)), required


def innermost(network: Any) -> Any:
    """Returns the network that takes the conditions: `network`, or what it wraps."""
    while getattr(network, "conditioned", None) is not None:
        network = network.conditioned
    return network


def null_label(network: Any) -> int | None:
    """Returns the label that means no class, None where the network does not say."""
    label = getattr(innermost(network), "null_label", None)
    return None if label is None else int(label)


def null_of(network: Any, name: str, value: Tensor, where: str, label: int | None = None) -> Tensor:
    """Returns what stands for no condition: a tensor of value's dtype, [B, …] or broadcastable.

    Args:
        network: whose `null_label` and `null_cond` say it.
        name: of the network's argument.
        value: [B, …], a condition of that name.
        where: that error messages begin with.
        label: the network's null label; None to ask it.

    Raises ValueError for whole numbers without a null, which zero could mean too, and for a null
    that is not of one sample's shape.
    """
    label = null_label(network) if label is None else label
    known = _nulls(network)
    if name in known:
        null = known[name].to(value.device, value.dtype)
        if null.numel() != 1 and null.shape != value.shape[1:]:
            raise ValueError(
                f"{where}: expected null_cond[{name!r}] of the shape of one sample's condition,"
                f" {list(value.shape[1:])}, got {list(null.shape)}."
            )
        return null.reshape((1,) * value.ndim if null.numel() == 1 else (1, *null.shape))
    if name == LABEL and label is not None:
        return torch.full_like(value, label)
    if not value.is_floating_point():
        attribute = "null_label" if name == LABEL else f"null_cond[{name!r}]"
        raise ValueError(
            f"{where}: expected {attribute} of the network, the value of {name!r} that means no"
            " condition, got none. Define it, or drop no conditions (label_dropout=0)."
        )
    return torch.zeros_like(value)


def null_arguments(network: Any, batch: int, device: Any, needs_label: bool) -> dict[str, Tensor]:
    """Returns the network's arguments for `batch` samples without conditions, as far as it says.

    needs_label: whether y must be passed, where the network has a null label.
    """
    found = {
        name: null.to(device).expand(batch, *null.shape) for name, null in _nulls(network).items()
    }
    label = null_label(network)
    if needs_label and label is not None and LABEL not in found:
        found[LABEL] = torch.full((batch,), label, dtype=torch.int64, device=device)
    return found


def _nulls(network: Any) -> Mapping[str, Tensor]:
    """Returns the network's null_cond as tensors."""
    known = getattr(innermost(network), "null_cond", None)
    return {name: torch.as_tensor(value) for name, value in known.items()} if known else {}
