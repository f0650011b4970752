"""How the network is called: its dtype and memory format, compiled or not, and its time and label
code apart.

A network that offers `condition(t, **cond)` and `decode(x, condition)` with forward(x, t, **cond) =
decode(x, condition(t, **cond)), as fastdiff's U-Net does, has its conditions computed for all steps
before the loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Model = Callable[..., Any]


class Network:
    """A model ready to be called in a loop. It is immutable: threads share it.

    A dtype or memory format that the model does not have is given to a copy of it, never to the
    model.
    """

    def __init__(
        self,
        model: Model,
        *,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
    ):
        if not callable(model):
            raise TypeError(
                "fastdiff.Sampler: expected a callable model(x, t, **cond), got"
                f" {type(model).__name__}."
            )
        self.dtype, self.channels_last = dtype, channels_last
        if isinstance(model, nn.Module) and (
            channels_last or dtype not in (None, parameter(model, "dtype", None))
        ):
            model = copy.deepcopy(model).to(dtype=dtype)
            if channels_last:
                model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.offers_conditions = _offers_conditions(model)
        self._forward, self._decode = model, getattr(model, "decode", None)
        if compile:
            options = {} if compile is True else dict(compile)
            self._forward = torch.compile(model, **options)
            self._decode = (
                torch.compile(self._decode, **options) if self.offers_conditions else None
            )

    def place(self, default: torch.dtype) -> tuple[torch.device, torch.dtype]:
        """Where the network is, and the dtype of its input."""
        device = parameter(self.model, "device", torch.device("cpu"))
        return device, self.dtype or parameter(self.model, "dtype", default)

    def forward(self, x: Tensor, t: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """model(x, t, **arguments), unpacked from an object with `.sample`."""
        out = self._forward(x, t, **arguments)
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise TypeError(
                "fastdiff.Sampler: expected the model to return a tensor or an object with"
                f" .sample, got {type(out).__name__}."
            )
        return out

    def condition(self, t: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The part of forward that knows of time and conditions alone."""
        return self.model.condition(t, **arguments)  # type: ignore[attr-defined]

    def decode(self, x: Tensor, condition: Tensor) -> Tensor:
        """The rest of it."""
        assert self._decode is not None
        return self._decode(x, condition)


def parameter(model: Model, attribute: str, default: Any) -> Any:
    """The device or dtype of the model's first floating parameter."""
    if isinstance(model, nn.Module):
        for p in model.parameters():
            if p.is_floating_point():
                return getattr(p, attribute)
    return default


def _offers_conditions(model: Model) -> bool:
    """Looked up in the class: a wrapper that passes attributes on does not mean its wrapped model's
    parts to be called.
    """
    if not isinstance(model, nn.Module) or model._forward_hooks or model._forward_pre_hooks:
        return False
    return all(callable(getattr(type(model), name, None)) for name in ("condition", "decode"))


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory ran out, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
