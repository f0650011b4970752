"""Backends: the choice of an implementation for an op, and the implementations except Triton's.

    choice.py    the choice of a backend, automatic or explicit, with its reason
    library.py   the native libraries: found, checked and loaded through a plain C ABI
    abi.py       the C ABI's argument structs, packed from tensors
    cpu.py, cuda.py   the `cpu` and `cuda` backends: launchers over the native libraries
    eager/       the `torch` backend
    hardware.py  what this machine's processors offer

The `triton` backend is the package `fastdiff_kernels` in kernels/.
"""

from .choice import Backend, backend_for, backends, binder, check, launcher, use

__all__ = ["Backend", "backend_for", "backends", "binder", "check", "launcher", "use"]
