"""Launches the kernels: argument lists, tile sizes, launch counters and the error word. Imports triton at first use.

Every function takes validated, contiguous tensors on one device (None where absent) and starts one kernel on the current
stream without reading the device. `launches` counts launches by op; `check` reads a device's error word.
"""

from __future__ import annotations

import importlib
from collections import Counter
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

launches: Counter[str] = Counter()
"""How many kernels each op has launched in this process."""

_errors: dict[torch.device, Tensor] = {}
_OUTSIDE = {1: "q_sample: expected t inside the tables", 2: "reverse_step: expected row inside the table"}

TILE = 1024  # elements a program: 8 a thread, so that loads overlap and registers suffice for full occupancy
WARPS = 4
_CHUNKS_Y = 65535  # what CUDA allows on grid axes 1 and 2

# columns of the table outside the combinations that decide on the kernel's variant (kernels/README.md section 4)
OUT_GRAD, X0_X, X0_OUT, CLIP_MODE, NOISE_MODE = (1 << column for column in (4, 5, 6, 7, 10))


class Call(NamedTuple):
    """One kernel launch: everything Triton is given."""

    op: str
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def kernel(self) -> Any:
        module = importlib.import_module(f"fastdiff_kernels.{self.op}")
        return getattr(module, f"{self.op}_kernel")


def tile_shape(size: int) -> tuple[int, int]:
    """(samples, elements) of a tile: powers of two with product TILE (short samples share a program).

    Among the longer rows the one that wastes fewest lanes on a sample of `size` elements, the longest of equals.
    """
    if size <= 128:
        elements = max(4, 1 << max(size - 1, 0).bit_length())
    else:
        elements = min((TILE, TILE // 2, TILE // 4, TILE // 8), key=lambda e: -(-size // e) * e)
    return TILE // elements, elements


def randn(
    out: Tensor, seed: int | None, seeds: Tensor | None, sample_ids: Tensor | None, step: int, stream: int, fast: bool
) -> None:
    run(randn_call(out, seed, seeds, sample_ids, step, stream, fast), out)


def q_sample(
    out: Tensor, x0: Tensor, t: Tensor | None, alpha: Tensor, sigma: Tensor, noise: Tensor | None, seed: int | None,
    seeds: Tensor | None, sample_ids: Tensor | None, step: int, stream: int, fast: bool,
) -> None:  # fmt: skip
    run(q_sample_call(out, x0, t, alpha, sigma, noise, seed, seeds, sample_ids, step, stream, fast), out)


def reverse_step(
    x_s: Tensor, x_t: Tensor, model_output: Tensor | None, table: Tensor, row: Tensor, slots: Tensor | None,
    noise: Tensor | None, seed: int | None, seeds: Tensor | None, sample_ids: Tensor | None, guidance: Tensor | None,
    gradient: Tensor | None, stream: int, fast: bool, uses: int, slots_out: Tensor | None, x0_out: Tensor | None,
    input_out: Tensor | None, row_out: Tensor | None,
) -> None:  # fmt: skip
    call = reverse_step_call(
        x_s, x_t, model_output, table, row, slots, noise, seed, seeds, sample_ids, guidance, gradient, stream, fast,
        uses, slots_out, x0_out, input_out, row_out,
    )  # fmt: skip
    run(call, x_s)


def randn_call(
    out: Tensor, seed: int | None, seeds: Tensor | None, sample_ids: Tensor | None, step: int, stream: int, fast: bool
) -> Call:
    arguments = {"out": out} | _noise(True, seed, seeds, sample_ids, stream) | {"step": _int32(step)}
    return _call("randn", out, arguments, fast)


def q_sample_call(
    out: Tensor, x0: Tensor, t: Tensor | None, alpha: Tensor, sigma: Tensor, noise: Tensor | None, seed: int | None,
    seeds: Tensor | None, sample_ids: Tensor | None, step: int, stream: int, fast: bool,
) -> Call:  # fmt: skip
    arguments = {
        "out": out, "x0": x0, "t": t, "alpha": alpha, "sigma": sigma, "noise": noise, "errors": _error_word(out.device),
        "step": _int32(step), "times": len(alpha), "ERROR": 1,
    } | _noise(noise is None, seed, seeds, sample_ids, stream)  # fmt: skip
    return _call("q_sample", out, arguments, fast and noise is None)


def reverse_step_call(
    x_s: Tensor, x_t: Tensor, model_output: Tensor | None, table: Tensor, row: Tensor, slots: Tensor | None,
    noise: Tensor | None, seed: int | None, seeds: Tensor | None, sample_ids: Tensor | None, guidance: Tensor | None,
    gradient: Tensor | None, stream: int, fast: bool, uses: int, slots_out: Tensor | None, x0_out: Tensor | None,
    input_out: Tensor | None, row_out: Tensor | None,
) -> Call:  # fmt: skip
    """Operands that no column reads become None and columns of absent operands leave `uses`: one variant per need."""
    batch, size = _extent(x_s)
    halves = 1 if guidance is None else 2
    width = 1 if model_output is None else max(1, model_output.numel() // max(1, halves * batch * size))
    seeded = seed is not None or seeds is not None
    memory, kept = 0 if slots is None else len(slots), 0 if slots_out is None else len(slots_out)
    given = [True, True, model_output is not None, *(i < memory for i in range(4)), noise is not None or seeded]
    uses &= sum(_reads(operand, 1 + kept) for operand in range(8) if given[operand]) | (1 << 14) - 1
    reads_x0, reads_z = bool(uses & _reads(1) or x0_out is not None), bool(uses & _reads(7))
    if not reads_x0:
        uses &= ~(X0_X | X0_OUT | CLIP_MODE)
    if model_output is None:
        uses &= ~X0_OUT
    reads_out = bool(uses & (_reads(2) | X0_OUT))
    if gradient is None or not reads_out:
        uses &= ~OUT_GRAD
    if width == 1 or not reads_z:
        uses &= ~NOISE_MODE
    uses &= sum(_reads(operand) for operand in range(8)) | OUT_GRAD | X0_X | X0_OUT | CLIP_MODE | NOISE_MODE
    generated = reads_z and noise is None
    copied = slots is not None and slots_out is not None and slots.data_ptr() != slots_out.data_ptr()
    reads_slots = copied or bool(uses & sum(_reads(operand) for operand in range(3, 7)))
    reads_output = reads_out or bool(uses & NOISE_MODE)
    arguments = {
        "x_s": x_s, "x_t": x_t, "table": table, "row": row, "errors": _error_word(x_s.device),
        "model_output": model_output if reads_output else None, "guidance": guidance if reads_out else None,
        "gradient": gradient if uses & OUT_GRAD else None, "noise": noise if reads_z else None,
        "slots": slots if reads_slots else None, "slots_out": slots_out,
        "x0_out": x0_out, "input_out": input_out, "row_out": row_out, "table_rows": len(table), "ERROR": 2,
        "USES": uses, "WIDTH": width if reads_output else 1, "COPY": kept if copied else 0,
        "COPIES": 1 if input_out is None or not batch else len(input_out) // batch,
    }  # fmt: skip
    arguments |= _noise(generated, seed, seeds, sample_ids, stream)
    return _call("reverse_step", x_s, arguments, fast and generated)


def run(call: Call, out: Tensor) -> None:
    if len(out) == 0:
        return
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        call.kernel()[call.grid](**call.arguments, **call.options)
    launches[call.op] += 1


def check(device: torch.device | str) -> None:
    """Raises IndexError if a kernel on the device met an index outside its table since the last check (this waits)."""
    error = _errors.get(_canonical(torch.device(device)))
    code = 0 if error is None else int(error.item())
    if error is not None and code:
        error.zero_()
        raise IndexError(f"fastdiff.{_OUTSIDE[code]}, got one outside; those samples are NaN. Indices count from 0.")


def _reads(operand: int, outputs: int = 5) -> int:
    """The columns by which the next x and the slots read an operand."""
    return sum(1 << (14 + 8 * output + operand) for output in range(outputs))


def _extent(out: Tensor) -> tuple[int, int]:
    batch = len(out)
    return batch, out.numel() // batch if batch else 0


def _call(op: str, out: Tensor, arguments: dict[str, Any], fast: bool) -> Call:
    batch, size = _extent(out)
    samples, elements = tile_shape(size)
    chunks = max(1, -(-size // elements))
    grid = (-(-batch // samples), min(chunks, _CHUNKS_Y), -(-chunks // _CHUNKS_Y))
    arguments = arguments | {"batch": batch, "size": size, "S": samples, "E": elements, "FAST": fast}
    # exact means no contraction of a product and a sum into one rounding
    return Call(op, grid, arguments, {"num_warps": WARPS, "enable_fp_fusion": fast})


def _noise(
    generated: bool, seed: int | None, seeds: Tensor | None, sample_ids: Tensor | None, stream: int
) -> dict[str, Any]:
    """The noise counter's arguments; integers go as int32, so that no value brings another variant."""
    seed = seed or 0
    return {
        "seeds": seeds if generated else None,
        "sample_ids": sample_ids if generated else None,
        "seed_lo": _int32(seed & 0xFFFFFFFF),
        "seed_hi": _int32(seed >> 32),
        "stream_index": stream,
    }


def _int32(word: int) -> int:
    """The signed number with the bits of a 32-bit word."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _canonical(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _error_word(device: torch.device) -> Tensor:
    word = _errors.get(device)
    if word is None:
        word = _errors[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return word
