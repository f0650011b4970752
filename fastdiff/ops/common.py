"""Validation shared by the ops. An error is one sentence: where: expected, got, do.

This file is over 400 lines because each check is short and used by several ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .. import rng
from ..backend import choice
from ..backend.eager.sums import CHUNK, chunks
from ..rng import MODES
from ..table import ALL_COLUMNS
from ..whole import whole

library = torch.library.Library("fastdiff", "DEF")
PLAIN = (Tensor, torch.nn.Parameter)  # types without a dispatch of their own
_STRIDED = torch.strided
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def define(name: str, schema: str, launch) -> None:
    """Registers fastdiff::<name>; one implementation for all devices chooses the backend."""
    library.define(name + schema)
    for key in ("CPU", "CUDA", "MPS", "XPU"):
        library.impl(name, launch, key)


def register_fake(name: str, fake: Callable[..., Any] | None = None) -> Any:
    """Registers the shapes and dtypes of fastdiff::<name>'s results; without `fake`, a decorator.

    A compiled function is traced before it runs, and the trace calls `fake`. What a backend needs
    on the device is allocated then: the compiled function may later run in the memory of a CUDA
    graph, where a tensor that outlives the graph must not be made.
    """
    if fake is None:
        return lambda function: register_fake(name, function)

    def prepared(*arguments: Any) -> Any:
        for value in arguments:
            if isinstance(value, Tensor):
                with _disable_current_modes():
                    choice.prepare(value.device)
                break
        return fake(*arguments)

    torch.library.register_fake(f"fastdiff::{name}", prepared)
    return fake


def strided(where: str, name: str, value: Tensor) -> None:
    """Refuses what is no tensor in dense memory: numbers, arrays, lists, sparse tensors."""
    try:
        # quicker than isinstance, and small steps notice; a nested tensor says that it is strided
        if value.layout is _STRIDED and not value.is_nested:
            return
    except AttributeError:
        pass
    if not isinstance(value, Tensor):
        raise TypeError(
            f"fastdiff.{where}: expected {name} as a tensor, got {type(value).__name__}."
        )
    layout = "a nested one" if value.is_nested else str(value.layout).removeprefix("torch.")
    raise TypeError(
        f"fastdiff.{where}: expected {name} as a dense tensor, got {layout}. Pass"
        f" {name}.to_dense()."
    )


def from_array(value: Any, like: Tensor) -> Tensor:
    """Returns NumPy's float64 arrays as tensors on the device of `like`, other values as they are.

    The tables of schedules and plans are such arrays. They are copied: a tensor can't share the
    memory of an array that may not be written.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        return torch.tensor(value, device=getattr(like, "device", None))
    found: Tensor = value  # which the op checks
    return found


def floating(where: str, name: str, value: Tensor) -> None:
    strided(where, name, value)
    if value.dtype not in FLOATS:
        raise TypeError(
            f"fastdiff.{where}: expected {name} of dtype float64, float32, float16 or bfloat16, got"
            f" {str(value.dtype).removeprefix('torch.')}."
        )


def flag(where: str, name: str, value: Any) -> bool:
    """Returns a truth value of any library's type; 0 and 1 count as such."""
    if type(value).__name__ not in ("bool", "bool_") and whole(value) not in (0, 1):
        raise TypeError(
            f"fastdiff.{where}: expected {name} as True or False, got {type(value).__name__}."
        )
    return bool(value)


def batched(where: str, name: str, value: Tensor) -> None:
    floating(where, name, value)
    if value.ndim < 1:
        raise ValueError(
            f"fastdiff.{where}: expected {name} of shape [B, …], got a scalar. Add a batch"
            " dimension."
        )


def shaped(where: str, name: str, value: Tensor, shape: Sequence[int]) -> None:
    if value.shape != (shape if isinstance(shape, tuple) else tuple(shape)):
        raise ValueError(
            f"fastdiff.{where}: expected {name} of shape {list(shape)}, got {list(value.shape)}."
        )


def same_device(where: str, name: str, value: Tensor, like: Tensor, like_name: str) -> None:
    if value.device != like.device:
        raise ValueError(
            f"fastdiff.{where}: expected {name} on {like.device} like {like_name}, got"
            f" {value.device}. Move it there."
        )


def integers(
    where: str, name: str, value: Tensor, batch: int, like: Tensor, like_name: str
) -> Tensor:
    """Checks an int64 [B] tensor on the device of `like` and returns it dense."""
    strided(where, name, value)
    if value.dtype != torch.int64:
        raise TypeError(
            f"fastdiff.{where}: expected {name} as an int64 tensor [{batch}], got"
            f" {str(value.dtype).removeprefix('torch.')}."
        )
    shaped(where, name, value, (batch,))
    same_device(where, name, value, like, like_name)
    return dense(value)


def seed_arguments(
    where: str,
    seed: int | Tensor | None,
    batch: int,
    like: Tensor,
    like_name: str,
    *,
    optional: bool = False,
) -> tuple[int, Tensor | None]:
    """Checks a seed and returns (the int64 with its bits, seeds [B] or None).

    optional: whether the seed may be None, which becomes 0, because no noise is drawn.
    """
    if seed is None and optional:
        return 0, None
    if type(seed) is not int and isinstance(seed, Tensor):  # isinstance of a Tensor is slow
        strided(where, "seed", seed)
        if seed.ndim == 0:
            seed = seed.expand(batch)
        return 0, integers(where, "seed", seed, batch, like, like_name)
    number = whole(seed)
    if number is None:
        raise TypeError(
            f"fastdiff.{where}: expected seed as an int or an int64 tensor, got"
            f" {type(seed).__name__}."
        )
    seed = number
    if not 0 <= seed < 2**64:
        raise ValueError(f"fastdiff.{where}: expected seed in [0, 2**64), got {seed}.")
    return seed - 2**64 if seed >= 2**63 else seed, None


def noise_arguments(
    where: str,
    seed: int | Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    mode: str,
    like: Tensor,
    like_name: str,
    *,
    optional: bool = False,
) -> tuple[int, Tensor | None, Tensor | None, int, int, bool]:
    """Checks what names an op's noise; returns (seed, seeds, sample_ids, step, stream, fast).

    The values of seeds and ids are not read here: the backends look at ids in the CPU's memory, and
    make samples with wrong ids NaN on other devices. optional: as in `seed_arguments`.
    """
    step, stream, fast = counter_arguments(where, step, stream, mode)
    batch = like.shape[0]
    number, seeds = seed_arguments(where, seed, batch, like, like_name, optional=optional)
    if sample_ids is not None:
        sample_ids = integers(where, "sample_ids", sample_ids, batch, like, like_name)
    return number, seeds, sample_ids, step, stream, fast


def unsigned(seed: int) -> int:
    """Returns the seed in [0, 2**64) with the bits of an int64."""
    return seed % 2**64


def windowed(where: str, stream: int, window: Any, per_sample: int) -> int:
    """Returns the stream of a window (offset, size) of larger samples; see `fastdiff.randn`."""
    stream = _count(where, "stream", stream, 256, "256")
    if window is None:
        return stream
    numbers = [whole(v) for v in window] if isinstance(window, Sequence) else []
    if len(numbers) != 2 or any(v is None or v < 0 for v in numbers):
        raise ValueError(
            f"fastdiff.{where}: expected window as (offset, size) or None, got {window!r}."
        )
    offset, size = (v or 0 for v in numbers)
    if offset % 4:
        raise ValueError(
            f"fastdiff.{where}: expected window (offset, size) whose offset is a multiple of 4, got"
            f" {offset}. Noise is drawn for four elements at a time: divide samples there."
        )
    if size != per_sample:
        raise ValueError(
            f"fastdiff.{where}: expected window (offset, size) of the {per_sample} elements of a"
            f" sample here, got {size}."
        )
    sized(where, offset + size)
    return rng.windowed(stream, offset)


def counter_arguments(
    where: str, step: int, stream: int, mode: str, *, window: bool = False
) -> tuple[int, int, bool]:
    """Checks the noise counter's step and stream; returns them and whether the mode is `fast`.

    window: whether the stream may be one of a window.
    """
    step = _count(where, "step", step, 2**32, "2**32")
    stream = _count(where, "stream", stream, 2**40 if window else 256, "256")
    if not isinstance(mode, str) or mode not in MODES:
        got = repr(mode) if isinstance(mode, str) else type(mode).__name__
        raise ValueError(f"fastdiff.{where}: expected mode in {list(MODES)}, got {got}.")
    return step, stream, mode == "fast"


def _count(where: str, name: str, value: Any, end: int, end_text: str) -> Any:
    """Returns a whole number of any type in [0, end), a traced one as it is."""
    number = value if isinstance(value, torch.SymInt) else whole(value)
    if number is None or not 0 <= number < end:
        got = type(value).__name__ if number is None else number
        raise ValueError(f"fastdiff.{where}: expected {name} in [0, {end_text}), got {got}.")
    return number


def sized(where: str, per_sample: int) -> None:
    if per_sample > 2**34:
        raise ValueError(
            f"fastdiff.{where}: expected at most 2**34 elements in a sample (the noise counter's"
            f" range), got {per_sample}."
        )


def writable(where: str, name: str, out: Tensor) -> None:
    """Refuses a result's memory that no kernel can write: no dense tensor, or one whose values are
    the negated memory, or one that autograd would have to record.
    """
    strided(where, name, out)
    if torch.compiler.is_compiling():
        return
    if lazy(out) or out.is_conj():
        raise ValueError(
            f"fastdiff.{where}: expected {name} whose memory has its values, got a negated view."
            " Pass plain memory."
        )
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"fastdiff.{where}: expected {name} without requires_grad, because no gradient is"
            f" recorded. Pass {name}.detach()."
        )


def written(
    where: str, out: Tensor, like: Tensor, inputs: Sequence[Tensor | None], *, name: str = "out"
) -> None:
    """Checks a result's memory: like `like` in shape, dtype and device, contiguous, and either the
    memory of an input or apart from all of them.
    """
    writable(where, name, out)
    shaped(where, name, out, like.shape)
    same_device(where, name, out, like, "the inputs")
    if out.dtype != like.dtype or not out.is_contiguous():
        raise ValueError(
            f"fastdiff.{where}: expected a contiguous {name} of dtype {_name(like.dtype)}, got"
            f" {_name(out.dtype)} with strides {out.stride()}."
        )
    apart(where, name, out, inputs)


def apart(
    where: str,
    name: str,
    out: Tensor,
    inputs: Sequence[Tensor | None],
    *,
    same: bool = True,
) -> None:
    """Refuses a result that shares a part of its memory with an input, or in another order.

    Its elements are written while others are still to be read. The same memory element by element
    is fine, unless `same` is false: an element is read before it is written. Tensors without memory
    are not looked at.
    """
    if observed() or out.is_meta:
        return
    begin = out.data_ptr()
    end = begin + _extent(out)
    for value in inputs:
        if value is None or (same and value is out):
            continue
        first = value.data_ptr()
        if first >= end or first + _extent(value) <= begin:
            continue
        alike = first == begin and value.dtype == out.dtype and value.stride() == out.stride()
        if not (same and alike and value.shape == out.shape):
            raise ValueError(
                f"fastdiff.{where}: expected {name} in the memory of an input or apart from all of"
                " them, got one that shares a part with an input. Pass other memory."
            )


def _extent(value: Tensor) -> int:
    """Returns the bytes from a tensor's first element to the end of its last one."""
    if value.is_contiguous():
        return value.numel() * value.element_size()
    last = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    return (last + 1) * value.element_size() if value.numel() else 0


def dense(value: Tensor) -> Tensor:
    """Returns value.contiguous(), without its dispatch where there is nothing to copy."""
    return value if value.is_contiguous() else value.contiguous()


_depth = getattr(torch._C, "_len_torch_dispatch_stack", None)
_transform = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)


def observed() -> bool:
    """Returns whether ops are being traced, faked, counted or transformed.

    They must then go through torch's dispatcher.
    """
    if torch.compiler.is_compiling():  # first: what follows can't be traced
        return True
    return _depth is None or _transform is None or bool(_depth() or _transform())


def unobserved(*values: Tensor) -> bool:
    """Returns whether an op on these tensors may be launched past torch's dispatcher.

    The dispatcher costs as much as the launch of a small step. The caller then increments the
    version counters of the tensors it writes.
    """
    if observed():
        return False
    for value in values:
        if type(value) not in PLAIN or value.is_meta or lazy(value):
            return False
    return True


def lazy(value: Tensor) -> bool:
    """Returns whether a tensor's memory is not its values: they are negated, or zeros not stored.

    torch's dispatcher gives ops a copy.
    """
    return value.is_neg() or value._is_zerotensor()


def readable(table: Tensor) -> bool:
    """Whether a table's numbers may be read by the host: not on a device, not while compiling."""
    return table.device.type == "cpu" and not torch.compiler.is_compiling()


def columns_used(table: Tensor) -> int:
    """Returns the bit mask of the columns with a non-zero entry.

    A table on a device is not read, nor one in a function that is being compiled: all columns count
    as used there.
    """
    if not readable(table):
        return ALL_COLUMNS
    return sum(1 << i for i in (table != 0).any(0).nonzero().flatten().tolist())


def elements(shape: Sequence[int]) -> int:
    """Returns the number of elements in a sample of shape [B, …]."""
    n = 1
    for size in shape[1:]:
        n *= size
    return n


def compute_dtype(*values: Tensor | None) -> torch.dtype:
    """Returns float64 if any of the values is float64, else float32."""
    return (
        torch.float64
        if any(v is not None and v.dtype == torch.float64 for v in values)
        else torch.float32
    )


def workspace_for(
    batch: int, per_sample: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Returns a buffer for the partial sums of samples; None where one chunk holds a sample."""
    if isinstance(per_sample, int) and per_sample <= CHUNK:
        return None
    return torch.empty(batch * chunks(per_sample), dtype=dtype, device=device)


def check_sum(
    where: str,
    out: Tensor | None,
    workspace: Tensor | None,
    like: Tensor,
    batch: int,
    n: int,
    dtype: torch.dtype,
) -> None:
    """Checks the caller's `out` [B] and `workspace` of a sum."""
    if out is None:
        if workspace is not None:
            raise ValueError(f"fastdiff.{where}: expected out together with workspace. Pass out=.")
        return
    writable(where, "out", out)
    shaped(where, "out", out, (batch,))
    same_device(where, "out", out, like, "the inputs")
    if out.dtype != dtype or not out.is_contiguous():
        raise TypeError(
            f"fastdiff.{where}: expected a contiguous out of dtype {_name(dtype)}, got"
            f" {_name(out.dtype)}."
        )
    if workspace is not None:
        writable(where, "workspace", workspace)
        floating(where, "workspace", workspace)
    needed = 0 if n <= CHUNK else batch * chunks(n)
    if needed:
        if (
            workspace is None
            or workspace.numel() < needed
            or workspace.dtype != dtype
            or not workspace.is_contiguous()
        ):
            got = (
                "none" if workspace is None else f"{workspace.numel()} of {_name(workspace.dtype)}"
            )
            raise ValueError(
                f"fastdiff.{where}: expected a workspace of {needed} {_name(dtype)} values with"
                f" out, got {got}."
            )
        same_device(where, "workspace", workspace, like, "the inputs")


def flat_view(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the value broadcast to the shape, as a [B, n] view with an element stride of 1 or 0.

    It is copied only where no such view exists.
    """
    batch, n = shape[0], elements(shape)
    if value.shape == shape and value.is_contiguous():
        return value.view(batch, n)
    wide = value.expand(shape)
    strides = [
        stride for size, stride in zip(wide.shape[1:], wide.stride()[1:], strict=True) if size != 1
    ]
    sample_stride = wide.stride(0) if batch != 1 else n
    if all(stride == 0 for stride in strides) and n > 1:
        return wide.as_strided((batch, n), (sample_stride if batch != 1 else 0, 0))
    dense, expected = True, 1
    for size, stride in zip(reversed(wide.shape[1:]), reversed(wide.stride()[1:]), strict=True):
        if size != 1:
            dense, expected = dense and stride == expected, expected * size
    if dense:
        return wide.as_strided((batch, n), (sample_stride, 1))
    return wide.contiguous().view(batch, n)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def broadcast(where: str, name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the value expanded to the shape; its gradient is summed back."""
    if value.shape == tuple(shape):
        return value
    try:
        return value.expand(tuple(shape))
    except RuntimeError:
        raise ValueError(
            f"fastdiff.{where}: expected {name} of shape {list(shape)} or broadcastable to it, got"
            f" {list(value.shape)}."
        ) from None


def common_shape(where: str, values: dict[str, Tensor]) -> tuple[int, ...]:
    """Returns the shape [B, …] that all values broadcast to."""
    shapes = [v.shape for v in values.values()]
    equal = all(shape == shapes[0] for shape in shapes)  # `count` of sizes can't be traced
    try:
        shape = tuple(shapes[0] if equal else torch.broadcast_shapes(*shapes))
    except RuntimeError:
        got = ", ".join(f"{name} {list(v.shape)}" for name, v in values.items())
        raise ValueError(
            f"fastdiff.{where}: expected shapes that broadcast to one, got {got}."
        ) from None
    if not shape:
        raise ValueError(
            f"fastdiff.{where}: expected shapes [B, …], got scalars. Add a batch dimension."
        )
    return shape
