"""The native libraries: finds, checks and loads the C++ and the CUDA library.

Both have one plain C ABI (fastdiff/backend/abi.py packs its structs) and don't link against torch.
They are loaded at first use, after torch, so that all share one OpenMP runtime.

To load a library runs its code. FASTDIFF_LIB and FASTDIFF_CUDA_LIB name other files in their
places: for builds that are tested before they are installed. A file that lacks the names of the ABI
is not loaded.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..outside import parse_json, read_bytes, shown
from ..table import COLUMNS
from .abi import ABI_VERSION, COUNTED, OPS

LEVELS = ("baseline", "avx2", "avx512")
FOLDER = Path(__file__).parents[1] / "lib"
LIBRARIES = {"cpu": "libfastdiff_cpu.so", "cuda": "libfastdiff_cuda.so"}
_OVERRIDES = {"cpu": "FASTDIFF_LIB", "cuda": "FASTDIFF_CUDA_LIB"}
# functions of the ABI: of both libraries, and of one
_FUNCTIONS = ("fd_abi_version", "fd_schema", "fd_last_error", "fd_launches")
_OWN = {
    "cpu": ("fd_levels", "fd_cpu_level", "fd_openmp"),
    "cuda": ("fd_cuda_archs", "fd_cuda_unusable"),
}
_ERRORS = {1: ValueError, 2: IndexError, 3: RuntimeError}


class Library(NamedTuple):
    """A loaded library.

    `handle` is None when the library can't be used; `reason` says why, and otherwise what it is.
    `calls` holds the C function of each op.
    """

    handle: Any
    reason: str
    calls: dict[str, Callable[[Any], int]]


level = -1  # the number of a forced CPU level; -1: the library takes the best


@functools.cache
def load(kind: str) -> Library:
    """Returns the library `cpu` or `cuda`, loaded at the first call."""
    named = os.environ.get(_OVERRIDES[kind])
    path = Path(named or FOLDER / LIBRARIES[kind]).absolute()  # dlopen searches for bare names
    name = f"{_OVERRIDES[kind]}={shown(named)}" if named else path.name
    if not path.exists():
        info = build_info().get(kind)
        built = info.get("reason") if isinstance(info, dict) and not named else None
        why = "there is no such file" if named else built or "it was not built"
        return Library(None, f"no {name}: {why}", {})
    missing = _lacking(path, (*_FUNCTIONS, *_OWN[kind]))
    if missing:
        return Library(
            None,
            f"{name} is no fastdiff library for {kind}, lacks {', '.join(missing)} and was not"
            " loaded",
            {},
        )
    try:
        handle = ctypes.CDLL(str(path))
        handle.fd_abi_version.restype = ctypes.c_int64
        version = handle.fd_abi_version()
        functions = {n: getattr(handle, n) for n in (*_FUNCTIONS, *_OWN[kind])}
    except (OSError, AttributeError) as error:
        return Library(None, f"{name} does not load: {shown(error)}", {})
    if version != ABI_VERSION:
        return Library(
            None,
            f"{name} has ABI version {version}, expected {ABI_VERSION}: build it again",
            {},
        )
    for function in ("fd_schema", "fd_last_error"):
        functions[function].restype = ctypes.c_char_p
    handle.fd_launches.argtypes, handle.fd_launches.restype = [ctypes.c_int64], ctypes.c_uint64
    if (handle.fd_schema() or b"") != ",".join(COLUMNS).encode():
        return Library(None, f"{name} has another table schema: build it again", {})
    missing = [op for op in OPS if not hasattr(handle, f"fd_{op}")]
    if missing:
        return Library(None, f"{name} lacks {', '.join(missing)}: build it again", {})
    calls = {op: getattr(handle, f"fd_{op}") for op in OPS}
    for call in calls.values():
        call.argtypes = [ctypes.c_char_p]
    library = _cpu(handle, calls) if kind == "cpu" else _cuda(handle, calls)
    return library._replace(reason=f"{library.reason}, from {name}") if named else library


def _lacking(path: Path, names: Iterable[str]) -> list[str]:
    """Returns the names that a file does not contain, without loading it as a library.

    A library holds the names of its functions as they are. Loading another one would run its
    initialisers, whatever they do.
    """
    try:
        if not path.is_file():
            return list(names)
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return [name for name in names if content.find(name.encode() + b"\0") < 0]
    except (OSError, ValueError):  # not readable, or empty
        return list(names)


def _cpu(handle: Any, calls: dict[str, Callable[[Any], int]]) -> Library:
    handle.fd_levels.restype = ctypes.c_char_p
    for name in ("fd_cpu_level", "fd_openmp"):
        getattr(handle, name).restype = ctypes.c_int64
    number = handle.fd_cpu_level()
    if not 0 <= number < len(LEVELS):
        return Library(None, f"it reports CPU level {number} of {len(LEVELS)}", {})
    best = LEVELS[number]
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
    """Returns what the library is (level and threading, architectures), or why it is off."""
    return load(kind).reason


def emulated() -> bool:
    """Whether the CUDA library in use is compiled for the host, with its kernels as loops."""
    library = load("cuda")
    return library.handle is not None and library.handle.fd_cuda_archs() == b"host"


def build_info() -> dict[str, Any]:
    """Returns how the native libraries were built (compiler, flags, levels), or why they were not.

    It is empty before a build.
    """
    try:
        found = parse_json(read_bytes(FOLDER / "build_info.json"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def compiled_levels() -> list[str]:
    """Returns the CPU levels that are compiled into the library, lowest first."""
    return _handle("cpu").fd_levels().decode().split(",")


def levels() -> list[str]:
    """Returns the compiled CPU levels that this processor runs."""
    return list(LEVELS[: _handle("cpu").fd_cpu_level() + 1])


def set_level(name: str | None) -> None:
    """Forces a CPU level in this process; None takes the best again.

    The environment variable FASTDIFF_CPU_LEVEL does the same at start-up. Raises ValueError for a
    level that is not compiled in or that this processor lacks.
    """
    _force(name, levels()[-1], "fastdiff.backend.library.set_level")


def forced_level() -> int:
    """Returns the number of the forced CPU level; -1: the best one that runs here."""
    load("cpu")  # reads FASTDIFF_CPU_LEVEL
    return level


def _force(name: str | None, best: str, where: str) -> None:
    global level
    runs = LEVELS[: LEVELS.index(best) + 1]
    if name is not None and name not in runs:
        raise ValueError(
            f"{where}: expected a CPU level that runs here, one of {list(runs)}, got {name!r}."
        )
    level = -1 if name is None else LEVELS.index(name)


def launches(op: str, kind: str = "cpu") -> int:
    """Returns how many kernels of this op or prepass the library has launched in this process."""
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
    """Raises the error of a status other than 0, with the library's message."""
    raise _ERRORS[status](f"fastdiff.{op}: {library.handle.fd_last_error().decode()}")
