"""`randn`: standard normals as a pure function of (seed, sample id, stream, step, element)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..backend import choice
from ..whole import whole
from . import common

_SCHEMA = (
    "(Tensor(a!) out, SymInt seed, Tensor? seeds, Tensor? sample_ids, SymInt step, int stream,"
    " bool fast) -> ()"
)


def _launch(
    out: Tensor,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    choice.launcher("randn", out.device)(
        out, common.unsigned(seed), seeds, sample_ids, step, stream, fast
    )


common.define("randn_out", _SCHEMA, _launch)
_fill = torch.ops.fastdiff.randn_out.default


@common.register_fake("randn_out")
def _(out, seed, seeds, sample_ids, step, stream, fast):
    return None


def randn(
    shape: Sequence[int],
    *,
    seed: int | Tensor,
    sample_ids: Tensor | None = None,
    step: int = 0,
    stream: int = 0,
    window: tuple[int, int] | None = None,
    mode: str = "exact",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draws standard normals by Philox4x32-10 and Box-Muller (Salmon et al. 2011).

    kernels/README.md section 1 defines their bits.

    Args:
        shape: [B, …]; element e counts inside a sample in C order.
        seed: int in [0, 2**64), or int64 [] or [B] carrying one in two's complement.
        sample_ids: int64 [B] in [0, 2**56), default 0 … B-1.
        step, stream: the rest of the counter, in [0, 2**32) and [0, 256).
        window: (offset, size) where the samples here are the elements offset … offset + size - 1 of
            larger ones, as on a rank that has a part of each sample: they get the noise that the
            whole has there. offset is a multiple of 4.
        mode: `exact` gives the same bits on every backend, `fast` the hardware's approximations of
            the same numbers.
        dtype: of the output, default float32; values are float32 normals, rounded or widened.
        device: default that of seed or sample_ids where they are tensors, else torch's default
            device, or a GPU where the backend in use runs on nothing else.
        out: where to write them: a contiguous tensor of this shape.
        backend: the backend to run on; an error where it can't. None chooses one.

    Raises:
        IndexError: sample_ids outside [0, 2**56) (CPU; other devices give NaN for that sample).
        ValueError, TypeError: for other arguments.
    """
    if isinstance(shape, Tensor):
        common.strided("randn", "shape", shape)
        shape = shape.tolist()
    try:
        shape = tuple(shape)
    except TypeError:
        raise ValueError(
            f"fastdiff.randn: expected shape [B, …] of sizes >= 0, got {shape!r}."
        ) from None
    if out is not None:
        common.writable("randn", "out", out)
    if out is None or out.shape != shape:
        sizes: Any = tuple(n if isinstance(n, torch.SymInt) else whole(n) for n in shape)
        if len(shape) < 1 or any(n is None or n < 0 for n in sizes):
            raise ValueError(
                f"fastdiff.randn: expected shape [B, …] of sizes >= 0, got {list(shape)}."
            )
        shape = sizes
    elif not shape:
        raise ValueError("fastdiff.randn: expected shape [B, …] of sizes >= 0, got [].")
    else:
        shape = tuple(out.shape)  # equal, but perhaps of other types of numbers
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"fastdiff.randn: expected dtype as a torch.dtype, got {type(dtype).__name__}."
        )
    if out is None:
        if device is None:
            tensors = [v for v in (seed, sample_ids) if isinstance(v, Tensor)]
            device = tensors[0].device if tensors else choice.default_device(backend)
        out = torch.empty(shape, dtype=dtype or torch.float32, device=device)
    elif not out.is_contiguous():
        raise ValueError(
            "fastdiff.randn: expected a contiguous out. Fill a contiguous tensor and copy it."
        )
    common.floating("randn", "out" if dtype is None else "dtype", out)
    common.shaped("randn", "out", out, shape)
    common.sized("randn", common.elements(shape))
    draw = (seed, sample_ids, step, stream, mode)
    number, seeds, ids, step, stream, fast = common.noise_arguments("randn", *draw, out, "out")
    stream = common.windowed("randn", stream, window, common.elements(shape))
    noise = (number, seeds, ids, step, stream, fast)
    tensors = [out, *(v for v in noise if isinstance(v, Tensor))]
    with choice.use(backend) if backend else nullcontext():
        if common.unobserved(*tensors):
            torch.autograd.graph.increment_version(out)
            _launch(out, *noise)
        else:
            _fill(out, *noise)
    return out
