"""The C++ and the CUDA library: found, checked and called through one plain C ABI
(fastdiff/backend/abi.py packs the structs).

They are loaded on first use, after torch, so that all share one OpenMP runtime; nothing in them
links against torch.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..table import COLUMNS
from .abi import ABI_VERSION, COUNTED, OPS, PACKERS, packer

LEVELS = ("baseline", "avx2", "avx512")
FOLDER = Path(__file__).parents[1] / "lib"
LIBRARIES = {"cpu": "libfastdiff_cpu.so", "cuda": "libfastdiff_cuda.so"}
_OVERRIDES = {"cpu": "FASTDIFF_LIB", "cuda": "FASTDIFF_CUDA_LIB"}
_ERRORS = {1: ValueError, 2: IndexError, 3: RuntimeError}


class Library(NamedTuple):
    """A loaded library; `handle` is None when it can't be used, and `reason` says why, else what it
    is.
    """

    handle: Any
    reason: str
    calls: dict[str, Callable[[Any], int]]


_level = -1  # the CPU library's own choice: the best


@functools.cache
def load(kind: str) -> Library:
    """The library `cpu` or `cuda`."""
    path = Path(os.environ.get(_OVERRIDES[kind]) or FOLDER / LIBRARIES[kind])
    if not path.exists():
        return Library(
            None,
            f"no {path.name}: {build_info().get(kind, {}).get('reason') or 'it was not built'}",
            {},
        )
    try:
        handle = ctypes.CDLL(str(path))
        handle.fd_abi_version.restype = ctypes.c_int64
        version = handle.fd_abi_version()
    except (OSError, AttributeError) as error:
        return Library(None, f"{path.name} does not load: {error}", {})
    if version != ABI_VERSION:
        return Library(
            None,
            f"{path.name} has ABI version {version}, expected {ABI_VERSION}: build it again",
            {},
        )
    for name in ("fd_schema", "fd_last_error"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.fd_launches.argtypes, handle.fd_launches.restype = [ctypes.c_int64], ctypes.c_uint64
    if handle.fd_schema().decode() != ",".join(COLUMNS):
        return Library(None, f"{path.name} has another table schema: build it again", {})
    calls = {op: getattr(handle, f"fd_{op}") for op in OPS}
    for call in calls.values():
        call.argtypes = [ctypes.c_char_p]
    return _cpu(handle, calls) if kind == "cpu" else _cuda(handle, calls)


def _cpu(handle: Any, calls: dict[str, Callable[[Any], int]]) -> Library:
    handle.fd_levels.restype = ctypes.c_char_p
    for name in ("fd_cpu_level", "fd_openmp"):
        getattr(handle, name).restype = ctypes.c_int64
    best = LEVELS[handle.fd_cpu_level()]
    forced = os.environ.get("FASTDIFF_CPU_LEVEL") or None
    if forced:
        _force(forced, best, "FASTDIFF_CPU_LEVEL")
    threads = "OpenMP" if handle.fd_openmp() else "one thread, built without OpenMP"
    return Library(handle, f"level {forced or best}, {threads}", calls)


def _cuda(handle: Any, calls: dict[str, Callable[[Any], int]]) -> Library:
    for name in ("fd_cuda_archs", "fd_cuda_unusable"):
        getattr(handle, name).restype = ctypes.c_char_p
    archs, unusable = handle.fd_cuda_archs().decode(), handle.fd_cuda_unusable().decode()
    if unusable:
        return Library(None, unusable.removesuffix("."), {})
    if archs != "host" and not torch.cuda.is_available():
        return Library(None, "torch sees no GPU", {})
    return Library(
        handle,
        "emulated on the host, for tests" if archs == "host" else f"CUDA C++ for {archs}",
        calls,
    )


def available(kind: str = "cpu") -> bool:
    return load(kind).handle is not None


def reason(kind: str = "cpu") -> str:
    """What the library is (level and threading, architectures), or why it is off."""
    return load(kind).reason


def emulated() -> bool:
    """Whether the CUDA library in use is the one whose kernels run in loops on host memory."""
    library = load("cuda")
    return library.handle is not None and library.handle.fd_cuda_archs() == b"host"


def build_info() -> dict[str, Any]:
    """How the native libraries were built (compiler, flags, levels), or why not; empty before a
    build.
    """
    try:
        return json.loads((FOLDER / "build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def compiled_levels() -> list[str]:
    """The CPU levels in the library, lowest first."""
    return _handle("cpu").fd_levels().decode().split(",")


def levels() -> list[str]:
    """Those of them that this processor runs."""
    return list(LEVELS[: _handle("cpu").fd_cpu_level() + 1])


def set_level(name: str | None) -> None:
    """Forces a CPU level in this process; None returns to the best. FASTDIFF_CPU_LEVEL does so from
    outside.

    Raises ValueError for a level that is not compiled in or that this processor lacks.
    """
    _force(name, levels()[-1], "fastdiff.backend.library.set_level")


def forced_level() -> int:
    """The number of the CPU level that is forced, or -1: the best that runs here."""
    load("cpu")
    return _level


def _force(name: str | None, best: str, where: str) -> None:
    global _level
    runs = LEVELS[: LEVELS.index(best) + 1]
    if name is not None and name not in runs:
        raise ValueError(
            f"{where}: expected a CPU level that runs here, one of {list(runs)}, got {name!r}."
        )
    _level = -1 if name is None else LEVELS.index(name)


def launches(op: str, kind: str = "cpu") -> int:
    """How many kernels of this op (or prepass) the library has launched in this process."""
    return _handle(kind).fd_launches(COUNTED.index(op))


def _handle(kind: str) -> Any:
    library = load(kind)
    if library.handle is None:
        raise RuntimeError(
            f"fastdiff.backend.library: expected the library {LIBRARIES[kind]}, got none:"
            f" {library.reason}."
        )
    return library.handle


def raise_status(library: Library, op: str, status: int) -> None:
    """Raises the error that a status other than 0 stands for, with the library's sentence."""
    raise _ERRORS[status](f"fastdiff.{op}: {library.handle.fd_last_error().decode()}")


def _launcher(name: str, op: str, pack: Callable[..., bytes]) -> Callable[..., None]:
    def launch(*arguments: Any) -> None:
        library = load("cpu")
        status = library.calls[op](pack((_level, torch.get_num_threads(), 0, 0), *arguments))
        if status:
            raise_status(library, op, status)

    launch.__name__ = launch.__qualname__ = name
    return launch


LAUNCHERS = {name: _launcher(name, op, pack) for name, (op, pack) in PACKERS.items()}


def _bind_reverse_step(step: Any, moving: Sequence[str]) -> Callable[..., None]:
    library, pack = load("cpu"), packer(step, moving)
    call = library.calls["reverse_step"]

    def launch(values: Sequence[Any]) -> None:
        status = call(pack((_level, torch.get_num_threads(), 0, 0), values))
        if status:
            raise_status(library, "reverse_step", status)

    return launch


BINDERS = {"reverse_step": _bind_reverse_step}
