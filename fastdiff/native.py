"""The C++ library: found, checked and called through its plain C ABI (csrc/include/fastdiff/cpu.h).

Every argument is a 64-bit field of one struct, packed into bytes and passed by one pointer. The library is loaded on
first use, after torch, so that both share one OpenMP runtime; nothing in it links against torch.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .table import COLUMNS

ABI_VERSION = 1
LEVELS = ("baseline", "avx2", "avx512")
OPS = ("randn", "q_sample", "reverse_step")
FOLDER = Path(__file__).parent / "lib"
LIBRARY = "libfastdiff_cpu.so"

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_LAUNCH, _DRAW = "qqqq", "QQQQQ"
_RANDN = struct.Struct(f"={_LAUNCH}{_DRAW}Qq")
_Q_SAMPLE = struct.Struct(f"={_LAUNCH}{_DRAW}QqQqQQQqQq")
_REVERSE_STEP = struct.Struct(f"={_LAUNCH}{_DRAW}qQqQqQqqQqQQqQqQqQQqQqQqqQ")


class _Library(NamedTuple):
    handle: Any  # None when the library can't be used
    reason: str
    calls: dict[str, Callable[[bytes], int]]


_level = -1  # the library's own choice: the best


@functools.cache
def _load() -> _Library:
    path = Path(os.environ.get("FASTDIFF_LIB") or FOLDER / LIBRARY)
    if not path.exists():
        return _Library(None, f"no {path.name}: {build_info().get('cpu', {}).get('reason') or 'it was not built'}", {})
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return _Library(None, f"{path.name} does not load: {error}", {})
    for name in ("fd_abi_version", "fd_cpu_level", "fd_openmp"):
        getattr(handle, name).restype = ctypes.c_int64
    for name in ("fd_schema", "fd_levels", "fd_last_error"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.fd_launches.argtypes, handle.fd_launches.restype = [ctypes.c_int64], ctypes.c_uint64
    if (version := handle.fd_abi_version()) != ABI_VERSION:
        return _Library(None, f"{path.name} has ABI version {version}, expected {ABI_VERSION}: build it again", {})
    if handle.fd_schema().decode() != ",".join(COLUMNS):
        return _Library(None, f"{path.name} has another table schema: build it again", {})
    calls = {op: getattr(handle, f"fd_{op}") for op in OPS}
    for call in calls.values():
        call.argtypes = [ctypes.c_char_p]
    best = LEVELS[handle.fd_cpu_level()]
    forced = os.environ.get("FASTDIFF_CPU_LEVEL") or None
    if forced:
        _force(forced, best, "FASTDIFF_CPU_LEVEL")
    threads = "OpenMP" if handle.fd_openmp() else "one thread, built without OpenMP"
    return _Library(handle, f"level {forced or best}, {threads}", calls)


def available() -> bool:
    return _load().handle is not None


def reason() -> str:
    """The library's level and threading, or why it is off."""
    return _load().reason


def build_info() -> dict[str, Any]:
    """How the native libraries were built (compiler, flags, levels), or why not; empty before a build."""
    try:
        return json.loads((FOLDER / "build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def compiled_levels() -> list[str]:
    """The CPU levels in the library, lowest first."""
    return _handle().fd_levels().decode().split(",")


def levels() -> list[str]:
    """Those of them that this processor runs."""
    return list(LEVELS[: _handle().fd_cpu_level() + 1])


def set_level(name: str | None) -> None:
    """Forces a CPU level in this process; None returns to the best. FASTDIFF_CPU_LEVEL does so from outside.

    Raises ValueError for a level that is not compiled in or that this processor lacks.
    """
    _force(name, levels()[-1], "fastdiff.native.set_level")


def _force(name: str | None, best: str, where: str) -> None:
    global _level
    runs = LEVELS[: LEVELS.index(best) + 1]
    if name is not None and name not in runs:
        raise ValueError(f"{where}: expected a CPU level that runs here, one of {list(runs)}, got {name!r}.")
    _level = -1 if name is None else LEVELS.index(name)


def launches(op: str) -> int:
    """How many kernels of this op the library has launched in this process."""
    return _handle().fd_launches(OPS.index(op))


def _handle() -> Any:
    library = _load()
    if library.handle is None:
        raise RuntimeError(f"fastdiff.native: expected the C++ library, got none: {library.reason}.")
    return library.handle


def _call(op: str, arguments: bytes) -> None:
    library = _load()
    status = library.calls[op](arguments)
    if status:
        error = IndexError if status == 2 else ValueError
        raise error(f"fastdiff.{op}: {library.handle.fd_last_error().decode()}")


def _elements(tensor: Tensor) -> int:
    """Elements of one sample."""
    batch = tensor.size(0)
    return tensor.numel() // batch if batch else 0


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _array(tensor: Tensor | None) -> tuple[int, int]:
    """Pointer and dtype."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), _DTYPES[tensor.dtype])


def randn(
    out: Tensor, seed: int, seeds: Tensor | None, sample_ids: Tensor | None, step: int, stream: int, fast: bool
) -> None:
    """`fast` promises no bits, and `exact` is the fastest there is here."""
    _call(
        "randn",
        _RANDN.pack(
            out.size(0), _elements(out), _level, torch.get_num_threads(),
            seed, _pointer(seeds), _pointer(sample_ids), step, stream,
            *_array(out),
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
    _call(
        "q_sample",
        _Q_SAMPLE.pack(
            x0.size(0), _elements(x0), _level, torch.get_num_threads(),
            seed, _pointer(seeds), _pointer(sample_ids), step, stream,
            *_array(out), *_array(x0), _pointer(t), alpha.data_ptr(), sigma.data_ptr(), alpha.size(0), *_array(noise),
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
    uses: int,
    slots_out: Tensor | None,
    x0_out: Tensor | None,
    input_out: Tensor | None,
    row_out: Tensor | None,
) -> None:
    """`uses` is a hint for backends that specialise; here every row is decoded as it is met."""
    batch = x_t.size(0)
    _call(
        "reverse_step",
        _REVERSE_STEP.pack(
            batch, _elements(x_t), _level, torch.get_num_threads(),
            seed or 0, _pointer(seeds), _pointer(sample_ids), 0, stream,
            seed is not None or seeds is not None, *_array(x_s), *_array(x_t),
            *_array(model_output), 0 if model_output is None else _elements(model_output),
            table.data_ptr(), table.size(0), row.data_ptr(),
            _pointer(slots), 0 if slots is None else slots.size(0),
            _pointer(slots_out), 0 if slots_out is None else slots_out.size(0),
            *_array(noise), _pointer(guidance), *_array(gradient), *_array(x0_out), *_array(input_out),
            input_out.size(0) // batch if input_out is not None and batch else 0, _pointer(row_out),
        ),
    )  # fmt: skip
