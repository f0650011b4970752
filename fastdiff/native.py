"""The C++ library: found, checked and called through its plain C ABI (fastdiff/abi.py packs the structs).

It is loaded on first use, after torch, so that both share one OpenMP runtime; nothing in it links against torch.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .abi import ABI_VERSION, COUNTED, OPS, PACKERS
from .table import COLUMNS

LEVELS = ("baseline", "avx2", "avx512")
FOLDER = Path(__file__).parent / "lib"
LIBRARY = "libfastdiff_cpu.so"


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
    return _handle().fd_launches(COUNTED.index(op))


def _handle() -> Any:
    library = _load()
    if library.handle is None:
        raise RuntimeError(f"fastdiff.native: expected the C++ library, got none: {library.reason}.")
    return library.handle


def _launcher(name: str, op: str, pack: Callable[..., bytes]) -> Callable[..., None]:
    def launch(*arguments: Any) -> None:
        library = _load()
        status = library.calls[op](pack((_level, torch.get_num_threads(), 0, 0), *arguments))
        if status:
            error = IndexError if status == 2 else ValueError
            raise error(f"fastdiff.{op}: {library.handle.fd_last_error().decode()}")

    launch.__name__ = launch.__qualname__ = name
    return launch


LAUNCHERS = {name: _launcher(name, op, pack) for name, (op, pack) in PACKERS.items()}
