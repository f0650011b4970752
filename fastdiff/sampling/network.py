"""A user's network: the dtype and memory format of its input, and one checked call.

Only this module calls a user's network and unpacks its output. The sampling loop uses it directly,
all other doors through `fastdiff.sampling.model_call`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

Model = Callable[..., Any]


def tensor_of(out: Any, *, where: str) -> Tensor:
    """The tensor in a network's output: the output itself, its `.sample` or its first element.

    Raises TypeError for an output without a floating tensor.
    """
    found = out
    if not isinstance(found, Tensor):
        found = getattr(found, "sample", found)
        if isinstance(found, (tuple, list)) and found:
            found = found[0]
    if not isinstance(found, Tensor) or not found.is_floating_point():
        got = str(found.dtype) if isinstance(found, Tensor) else type(out).__name__
        raise TypeError(
            f"{where}: expected the model to return a floating tensor, an object with .sample or a"
            f" tuple that begins with one, got {got}."
        )
    return found


def prediction_of(out: Any, x: Tensor, *, where: str, learned: bool = False) -> Tensor:
    """The prediction in a network's output for the input x [B, C, …], of x's shape.

    Args:
        out: what the network returned; see `tensor_of`.
        x: the input of the call.
        where: the name that error messages begin with.
        learned: whether an output of twice the channels (prediction and learned variance) is
            returned whole; otherwise its prediction half is returned.

    Raises:
        TypeError: for an output without a floating tensor.
        ValueError: for an output of another shape.
    """
    found = tensor_of(out, where=where)
    shape = x.shape
    if found.shape == shape:
        return found
    if len(shape) < 2 or found.shape != (shape[0], 2 * shape[1], *shape[2:]):
        raise ValueError(
            f"{where}: expected a model output of shape {list(shape)}, like its input, got"
            f" {list(found.shape)}. Only learned variance adds to it: twice the channels."
        )
    return found if learned else found[:, : shape[1]]


class Network:
    """A model with the dtype and memory format of its input. It never changes, so threads may share
    it.

    A network that offers `condition(t, **cond)` and `decode(x, condition)` with forward(x, t,
    **cond) = decode(x, condition(t, **cond)), as fastdiff's U-Net does, lets the sampling loop
    compute its conditions for all steps ahead.

    Args:
        model: the user's network.
        dtype: of the network and its input; None for the model's own. A dtype or memory format
            that the model does not have goes to a copy of it; the model is never modified.
        channels_last: whether 4D inputs and weights have that memory format.
        compile: torch.compile for the calls; a dict has its arguments.
        guide: another network, which gets the unconditional half of guided calls; None for this
            one. dtype, channels_last and compile hold for it too.
        where: the name that error messages begin with.

    Attributes:
        guide: the `Network` of `guide`, or None.
        model: the network that is called, a copy where dtype or channels_last asked for one.
        copied: whether `model` is a copy of the user's.
        dtype, channels_last, where: as passed.

    Raises TypeError for a model that is not callable.
    """

    def __init__(
        self,
        model: Model,
        *,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
        guide: Model | None = None,
        where: str = "fastdiff.Sampler",
    ):
        if not callable(model):
            raise TypeError(
                f"{where}: expected a callable model(x, t, **cond), got {type(model).__name__}."
            )
        if guide is not None and not callable(guide):
            raise TypeError(
                f"{where}: expected guide as a callable guide(x, t, **cond) or None, got"
                f" {type(guide).__name__}."
            )
        self.guide: Network | None = None
        if guide is not None:
            self.guide = Network(
                guide, dtype=dtype, channels_last=channels_last, compile=compile, where=where
            )
        self.dtype, self.channels_last, self.where = dtype, channels_last, where
        self.copied = isinstance(model, nn.Module) and (
            channels_last or dtype not in (None, own_dtype(model, None))
        )
        if self.copied and isinstance(model, nn.Module):
            model = copy.deepcopy(model).to(dtype=dtype)
            if channels_last:
                model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self._dtype = dtype or own_dtype(model, None)
        self.offers_conditions = _offers_conditions(model)
        self._forward, self._decode = model, getattr(model, "decode", None)
        if compile:
            options = {} if compile is True else dict(compile)
            self._forward = torch.compile(model, **options)
            self._decode = (
                torch.compile(self._decode, **options) if self.offers_conditions else None
            )

    @property
    def device(self) -> torch.device:
        """The device of the model's first floating parameter, the CPU where it has none."""
        first = _first_parameter(self.model)
        return torch.device("cpu") if first is None else first.device

    @property
    def models(self) -> tuple[Model, ...]:
        """The model, and the guide's where there is one."""
        return (self.model,) if self.guide is None else (self.model, self.guide.model)

    def input_dtype(self, default: torch.dtype) -> torch.dtype:
        """The dtype of the network's input; `default` where the network has no dtype."""
        return self._dtype or default

    def input(self, x: Tensor) -> Tensor:
        """x [B, …] in the network's dtype and memory format."""
        x = x if self._dtype is None else x.to(self._dtype)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def forward(
        self, x: Tensor, t: Tensor, arguments: Mapping[str, Any], *, learned: bool = True
    ) -> Tensor:
        """The checked output of model(x, t, **arguments); see `prediction_of`."""
        try:
            out = self._forward(x, t, **arguments)
        except TypeError as error:
            self._check_signature(x, t, arguments, error)
            raise
        # the usual case: calling prediction_of would cost a tenth of a small step
        if out.__class__ is Tensor and out.shape == x.shape and out.is_floating_point():
            return out
        return prediction_of(out, x, where=self.where, learned=learned)

    def _check_signature(
        self, x: Tensor, t: Tensor, arguments: Mapping[str, Any], error: TypeError
    ) -> None:
        """Raises TypeError in one sentence if the model can't be called with these arguments."""
        function = self.model.forward if isinstance(self.model, nn.Module) else self.model
        try:
            signature = inspect.signature(function)
        except ValueError:  # functions of C have none
            return
        try:
            signature.bind(x, t, **arguments)
        except TypeError as refused:
            bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
            signature = inspect.Signature(bare)
            call = ", ".join(("x", "t", *(f"{name}=…" for name in arguments)))
            raise TypeError(
                f"{self.where}: expected a model that can be called as model({call}), got one that"
                f" takes {signature} ({refused}). Wrap it in a function of these arguments."
            ) from error

    def condition(self, t: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The part of the model that depends on time and conditions alone."""
        return self.model.condition(t, **arguments)  # type: ignore[attr-defined]

    def decode(self, x: Tensor, condition: Tensor) -> Tensor:
        """The checked output of the model for x and its condition."""
        assert self._decode is not None
        return prediction_of(self._decode(x, condition), x, where=self.where, learned=True)


def unsettled(model: Model) -> str | None:
    """The class of a module in training mode whose output then is drawn at random or depends on the
    batch: dropout, attention and recurrent layers with dropout, and batch normalization. None where
    a network has none, or is in eval mode itself: its parts are not looked at then.
    """
    if not isinstance(model, nn.Module) or not model.training:
        return None
    for module in model.modules():
        if module.training:
            share = module.p if isinstance(module, _DropoutNd) else _share(module)
            if share or isinstance(module, (_BatchNorm, nn.RReLU)):
                return type(module).__name__
    return None


def _share(module: nn.Module) -> float:
    """The share of values that a module without dropout modules drops, as torch names it."""
    share = vars(module).get("dropout", 0.0)
    return float(share) if isinstance(share, (int, float)) else 0.0


def own_dtype(model: Model, default: torch.dtype | None) -> torch.dtype | None:
    """The floating dtype of a model: its first floating parameter's, else the 16-bit dtype of its
    buffers, else its attribute `dtype`.

    Buffers of 32 and 64 bits are left out: they are tables of numbers rather than weights.
    """
    first = _first_parameter(model)
    if first is not None:
        return first.dtype
    if isinstance(model, nn.Module):
        for buffer in model.buffers():
            if buffer.dtype in (torch.float16, torch.bfloat16):
                return buffer.dtype
    named = getattr(model, "dtype", None)
    return named if isinstance(named, torch.dtype) and named.is_floating_point else default


def _first_parameter(model: Model) -> Tensor | None:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p for p in parameters if p.is_floating_point()), None)


def _offers_conditions(model: Model) -> bool:
    """Whether the model's class has `condition` and `decode`.

    The class is asked because a wrapper that forwards attributes does not want the wrapped model's
    methods to be called.
    """
    if not isinstance(model, nn.Module) or model._forward_hooks or model._forward_pre_hooks:
        return False
    return all(callable(getattr(type(model), name, None)) for name in ("condition", "decode"))


# what torch's allocator for the host says where no memory is left, and where none is granted
_NO_MEMORY = ("not enough memory", "can't allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _NO_MEMORY)
