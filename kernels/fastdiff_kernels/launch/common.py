"""Functions that all launches share: the call, tiles, noise arguments, counters, error word."""

from __future__ import annotations

import importlib
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compiled import Kernel, Variant

launches: Counter[str] = Counter()
"""How many times each kernel has been launched in this process."""

_kernels: dict[str, Kernel] = {}
_HERE: AbstractContextManager[Any] = nullcontext()
_errors: dict[torch.device, Tensor] = {}
_INDEX = {
    "q_sample": "t inside the tables",
    "reverse_step": "row inside the table",
    "q_posterior": "t inside alphas_cumprod",
    "vlb_terms": "t inside the table",
    "step_log_prob": "row among the table's rows with noise",
}
ERRORS = {op: number for number, op in enumerate(_INDEX, 1)}
"""What a kernel writes to the error word when an index is outside its table."""

# elements of a program: 8 per thread, so that loads overlap at full occupancy
TILE = 1024
WARPS = 4
_CHUNKS_Y = 65535  # what CUDA allows on grid axes 1 and 2
# What fills a GPU: an H200's multiprocessors, and the warps that each can hold. Programs of several
# chunks fill it twice, so that those that end last keep only a part of it waiting.
_MULTIPROCESSORS, _MOST_WARPS, _TIMES = 132, 64, 2
# Of a program: with more, its set-up would still be a twentieth of the instructions.
_MOST_CHUNKS = 8


class Call(NamedTuple):
    """One kernel launch: all that is passed to Triton."""

    op: str
    module: str
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def kernel(self) -> Any:
        return getattr(
            importlib.import_module(f"fastdiff_kernels.{self.module}"), f"{self.op}_kernel"
        )


def tile_shape(size: int) -> tuple[int, int]:
    """Returns (samples, elements) of a tile: powers of two with product TILE.

    Short samples share a program. For longer ones the number of elements leaves the fewest threads
    idle at the end of a sample of `size` elements; among equals it is the largest.
    """
    if size <= 128:
        elements = max(4, 1 << max(size - 1, 0).bit_length())
    else:
        elements = min((TILE, TILE // 2, TILE // 4, TILE // 8), key=lambda e: -(-size // e) * e)
    return TILE // elements, elements


def chunks_each(groups: int, chunks: int, warps: int) -> int:
    """Returns how many chunks of each of its samples a program computes.

    A program sets up what its samples need once for all of its chunks. So they are many, at most
    _MOST_CHUNKS, but enough programs are left to fill the GPU. Only the grid's limit asks for more.
    """
    enough = _TIMES * _MULTIPROCESSORS * _MOST_WARPS // warps
    each = min(_MOST_CHUNKS, max(1, groups * chunks // enough))
    return max(each, -(-chunks // _CHUNKS_Y))


def extent(out: Tensor) -> tuple[int, int]:
    """Returns (samples, elements of a sample)."""
    batch = len(out)
    return batch, out.numel() // batch if batch else 0


def tiled(
    op: str,
    like: Tensor,
    arguments: dict[str, Any],
    fast: bool = False,
    whole_chunks: bool = False,
    warps: int = WARPS,
) -> Call:
    """Returns a call over the samples and elements of `like`.

    The kernel of <op>_backward is in the module of <op>.
    """
    batch, size = extent(like)
    samples, elements = tile_shape(size)
    if whole_chunks:  # of TILE elements: the order of a sum depends on the size alone
        elements = min(TILE, max(4, 1 << max(size - 1, 0).bit_length()))
        samples = TILE // elements
    groups, chunks = -(-batch // samples), max(1, -(-size // elements))
    each = chunks_each(groups, chunks, warps)
    arguments = arguments | {
        "batch": batch,
        "size": size,
        "each": each,
        "S": samples,
        "E": elements,
        "FAST": fast,
    }
    grid = (groups, -(-chunks // each), 1)
    return Call(op, op.removesuffix("_backward"), grid, arguments, options(fast, warps))


def options(fast: bool = False, warps: int = WARPS) -> dict[str, Any]:
    """Returns compiler options; exact kernels don't fuse a product and a sum into one rounding."""
    return {"num_warps": warps, "enable_fp_fusion": fast}


def run(call: Call, out: Tensor) -> Variant | None:
    """Launches the kernel on the device of `out`, unless the batch is empty.

    Returns the compiled variant that ran, None where every launch must take Triton's way.
    """
    if len(out) == 0:
        return None
    with on_device(out.get_device()):
        variant = kernel_of(call).launch(call.grid, call.arguments, call.options)
    launches[call.op] += 1
    return variant


def kernel_of(call: Call) -> Kernel:
    """Returns the kernel of a call, with its compiled variants."""
    kernel = _kernels.get(call.op)
    if kernel is None:
        kernel = _kernels[call.op] = Kernel(call.kernel())
    return kernel


def on_device(index: int) -> AbstractContextManager[Any]:
    """Returns a context in which the GPU of this index is the current one; -1 is the host."""
    if index < 0 or torch.cuda.current_device() == index:
        return _HERE  # torch's own context costs as much as a launch
    return torch.cuda.device(index)


def check(device: torch.device | str) -> None:
    """Raises IndexError if a kernel met an index outside its table since the last check.

    It waits for the device.
    """
    error = _errors.get(_canonical(torch.device(device)))
    code = 0 if error is None else int(error.item())
    if error is not None and code:
        error.zero_()
        op, expected = list(_INDEX.items())[code - 1]
        raise IndexError(
            f"fastdiff.{op}: expected {expected}, got one outside; those samples are NaN. Indices"
            " count from 0."
        )


def noise_arguments(
    generated: bool, seed: int | None, seeds: Tensor | None, sample_ids: Tensor | None, stream: int
) -> dict[str, Any]:
    """Returns the noise counter's arguments."""
    low, high = seed_words(seed or 0)
    return {
        "seeds": seeds if generated else None,
        "sample_ids": sample_ids if generated else None,
        "seed_lo": low,
        "seed_hi": high,
        "stream_index": stream,
    }


def seed_words(seed: int) -> tuple[int, int]:
    """Returns the low and the high word of a seed.

    They are passed as int32, because Triton compiles another variant for wider integers.
    """
    return int32(seed & 0xFFFFFFFF), int32(seed >> 32)


def int32(word: int) -> int:
    """Returns the signed number with the bits of a 32-bit word."""
    return word - (1 << 32) if word >= 1 << 31 else word


def error_word(device: torch.device) -> Tensor:
    """Returns the int32 [1] to which kernels on this device write an op's number."""
    device = _canonical(device)
    word = _errors.get(device)
    if word is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # memory of a captured graph goes when the graph goes
            raise RuntimeError(
                f"fastdiff: expected a launch on {device} before the first one in a CUDA graph, got"
                " none. Run the captured function once before, as CUDA's warm-up asks."
            )
        word = _errors[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return word


def _canonical(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
