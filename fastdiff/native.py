"""The C++ library: found, checked and called through its plain C ABI (csrc/include/fastdiff/abi.h).

Every argument is a 64-bit field, packed into bytes and passed by one pointer. The library is loaded on first use, after
torch, so that both share one OpenMP runtime; nothing in it links against torch.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .table import COLUMNS

ABI_VERSION = 1
LEVELS = ("baseline", "avx2", "avx512")
FOLDER = Path(__file__).parent / "lib"
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_OPS = ("randn", "q_sample", "reverse_step")

_counter = "qqQQQqq"
_randn_args = struct.Struct(f"={_counter}qqQq")
_q_sample_args = struct.Struct(f"={_counter}qqQqQQQqQqQ")
_reverse_step_args = struct.Struct(f"={_counter}qqQqQqqQqQQqQqqQQqQQqQqQqqQ")


class _Library(NamedTuple):
    handle: Any
    reason: str
    best: int


_level = -1  # the library's own choice


@functools.cache
def _load() -> _Library:
    """The library with the reason in words; handle None when it can't be used."""
    path = Path(os.environ.get("FASTDIFF_LIB") or FOLDER / _file_name())
    if not path.exists():
        why = build_info().get("cpu", {}).get("reason", "it was not built")
        return _Library(None, f"no {path.name}: {why}", -1)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return _Library(None, f"{path.name} does not load: {error}", -1)
    for name in ("fd_columns", "fd_last_error"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.fd_launches.restype = ctypes.c_int64
    for op in _OPS:
        getattr(handle, f"fd_{op}").argtypes = [ctypes.c_char_p]
    if handle.fd_abi_version() != ABI_VERSION:
        return _Library(
            None, f"{path.name} has ABI version {handle.fd_abi_version()}, expected {ABI_VERSION}: rebuild it", -1
        )
    if handle.fd_columns().decode().split(",") != list(COLUMNS):
        return _Library(None, f"{path.name} has another table schema: rebuild it", -1)
    best = handle.fd_best_level()
    threads = "OpenMP" if handle.fd_openmp() else "one thread, built without OpenMP"
    wanted = os.environ.get("FASTDIFF_CPU_LEVEL")
    if wanted:
        _check_level(wanted, best)
        _set(wanted)
    return _Library(handle, f"{wanted or LEVELS[best]}, {threads}", best)


def _file_name() -> str:
    return "libfastdiff_cpu.dylib" if os.uname().sysname == "Darwin" else "libfastdiff_cpu.so"


def build_info() -> dict[str, Any]:
    """How the libraries were built (compiler, flags, or why not); empty before a build."""
    try:
        return json.loads((FOLDER / "build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def available() -> bool:
    return _load().handle is not None


def reason() -> str:
    """The library's level and threading, or why it is off, in one sentence."""
    return _load().reason


def levels() -> list[str]:
    """The CPU levels this machine runs, worst first."""
    return list(LEVELS[: _load().best + 1])


def set_level(name: str | None) -> None:
    """Forces a level (for tests; FASTDIFF_CPU_LEVEL does it from outside); None returns to the best.

    Raises ValueError for a level this machine lacks.
    """
    if name is not None:
        _check_level(name, _load().best)
    _set(name)


def _set(name: str | None) -> None:
    global _level
    _level = -1 if name is None else LEVELS.index(name)


def _check_level(name: str, best: int) -> None:
    have = list(LEVELS[: best + 1])
    if name not in have:
        raise ValueError(f"fastdiff.native: expected a CPU level in {have}, got {name!r}. This machine has no other.")


def launches(op: str) -> int:
    """How many kernels of this op the library has started in this process."""
    return _load().handle.fd_launches(op.encode())


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dtype(tensor: Tensor | None) -> int:
    return 0 if tensor is None else _DTYPES[tensor.dtype]


def _run(op: str, packed: bytes) -> None:
    handle = _load().handle
    status = getattr(handle, f"fd_{op}")(packed)
    if status:
        kind = IndexError if status == 1 else ValueError
        raise kind(f"fastdiff.{op}: {handle.fd_last_error().decode()}")


def _elements(tensor: Tensor) -> int:
    """Elements of one sample."""
    return tensor.numel() // tensor.shape[0] if tensor.shape[0] else 0


def randn(
    out: Tensor, seed: int, seeds: Tensor | None, sample_ids: Tensor | None, step: int, stream: int, fast: bool
) -> None:
    """`fast` promises no bits, and exact is already the fastest here."""
    _run(
        "randn",
        _randn_args.pack(
            _level, torch.get_num_threads(), seed, _pointer(seeds), _pointer(sample_ids), step, stream,
            out.shape[0], _elements(out), out.data_ptr(), _DTYPES[out.dtype],
        ),
    )  # fmt: skip


def q_sample(
    out: Tensor,
    x0: Tensor,
    t: Tensor | None,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    step: int,
    stream: int,
    fast: bool,
) -> None:
    _run(
        "q_sample",
        _q_sample_args.pack(
            _level, torch.get_num_threads(), seed, _pointer(seeds), _pointer(sample_ids), step, stream,
            x0.shape[0], _elements(x0), x0.data_ptr(), _DTYPES[x0.dtype], _pointer(t), alpha.data_ptr(),
            sigma.data_ptr(), alpha.shape[0], _pointer(noise), _dtype(noise), out.data_ptr(),
        ),
    )  # fmt: skip


def reverse_step(
    x_s: Tensor,
    x_t: Tensor,
    model_output: Tensor | None,
    table: Tensor,
    row: Tensor,
    slots: Tensor | None,
    noise: Tensor | None,
    seed: int | None,
    seeds: Tensor | None,
    sample_ids: Tensor | None,
    guidance: Tensor | None,
    gradient: Tensor | None,
    stream: int,
    fast: bool,
    used: int,
    slots_out: Tensor | None,
    x0_out: Tensor | None,
    input_out: Tensor | None,
    row_out: Tensor | None,
) -> None:
    batch = x_t.shape[0]
    if slots_out is not None and slots is not None and slots_out.data_ptr() != slots.data_ptr():
        slots_out.copy_(slots)  # rows that do not write a slot keep it
    _run(
        "reverse_step",
        _reverse_step_args.pack(
            _level, torch.get_num_threads(), seed or 0, _pointer(seeds), _pointer(sample_ids), 0, stream,
            batch, _elements(x_t), x_t.data_ptr(), _DTYPES[x_t.dtype],
            _pointer(model_output), _dtype(model_output), 0 if model_output is None else _elements(model_output),
            table.data_ptr(), table.shape[0], row.data_ptr(),
            _pointer(slots), 0 if slots is None else slots.shape[0],
            _pointer(noise), _dtype(noise), int(seed is not None or seeds is not None),
            _pointer(guidance), _pointer(gradient), _dtype(gradient),
            x_s.data_ptr(), _pointer(slots_out), 0 if slots_out is None else slots_out.shape[0],
            _pointer(x0_out), _dtype(x0_out), _pointer(input_out), _dtype(input_out),
            0 if input_out is None else input_out.shape[0] // batch if batch else 0, _pointer(row_out),
        ),
    )  # fmt: skip
