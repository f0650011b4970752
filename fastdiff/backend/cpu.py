"""The `cpu` backend: the C++ kernels, on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import library as native
from .abi import PACKERS, Pack, packers


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


def _bind_reverse_step(
    step: Any, moving: Sequence[str], both_ways: bool
) -> list[Callable[..., None]]:
    library = native.load("cpu")
    call = library.calls["reverse_step"]

    def launcher(pack: Pack) -> Callable[..., None]:
        def launch(values: Sequence[Any]) -> None:
            status = call(pack((native.level, torch.get_num_threads(), 0, 0), values))
            if status:
                native.raise_status(library, "reverse_step", status)

        return launch

    return [launcher(pack) for pack in packers(step, moving, both_ways)]


BINDERS = {"reverse_step": _bind_reverse_step}
