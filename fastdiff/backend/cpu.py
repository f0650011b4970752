"""The `cpu` backend: the C++ kernels, on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import library as native
from .abi import PACKERS, packer


def _launcher(name: str, op: str, pack: Callable[..., bytes]) -> Callable[..., None]:
    def launch(*arguments: Any) -> None:
        library = native.load("cpu")
        at = (native.level, torch.get_num_threads(), 0, 0)
        status = library.calls[op](pack(at, *arguments))
        if status:
            native.raise_status(library, op, status)

    launch.__name__ = launch.__qualname__ = name
    return launch


LAUNCHERS = {name: _launcher(name, op, pack) for name, (op, pack) in PACKERS.items()}


def _bind_reverse_step(step: Any, moving: Sequence[str]) -> Callable[..., None]:
    library, pack = native.load("cpu"), packer(step, moving)
    call = library.calls["reverse_step"]

    def launch(values: Sequence[Any]) -> None:
        status = call(pack((native.level, torch.get_num_threads(), 0, 0), values))
        if status:
            native.raise_status(library, "reverse_step", status)

    return launch


BINDERS = {"reverse_step": _bind_reverse_step}
