"""The `cuda` backend: the CUDA C++ kernels on torch's current stream.

Nothing here reads the device. An index outside its table makes that sample NaN and sets the
device's error word, which `check` reads (and FASTDIFF_CHECK=1 after every op).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from . import library as native
from .abi import COUNTED, PACKERS, Pack, device_of, packers

_errors: dict[torch.device, Tensor] = {}
_INDEX = {
    "reverse_step": "row inside the table",
    "step_log_prob": "row among the table's rows with noise",
}


def _launcher(name: str, op: str, pack: Callable[..., bytes]) -> Callable[..., None]:
    def launch(*arguments: Any) -> None:
        device = device_of(arguments)
        library = native.load("cuda")
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
            status = library.calls[op](
                pack((-1, 0, stream, error_word(device).data_ptr()), *arguments)
            )
        if status:
            native.raise_status(library, op, status)

    launch.__name__ = launch.__qualname__ = name
    return launch


LAUNCHERS = {name: _launcher(name, op, pack) for name, (op, pack) in PACKERS.items()}


def _bind_reverse_step(
    step: Any, moving: Sequence[str], both_ways: bool
) -> list[Callable[..., None]]:
    device = step.x_t.device
    library, errors = native.load("cuda"), error_word(device)
    call, on_gpu = library.calls["reverse_step"], device.type == "cuda"

    def launcher(pack: Pack) -> Callable[..., None]:
        def launch(values: Sequence[Any]) -> None:
            with torch.cuda.device(device) if on_gpu else nullcontext():
                stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
                status = call(pack((-1, 0, stream, errors.data_ptr()), values))
            if status:
                native.raise_status(library, "reverse_step", status)

        return launch

    return [launcher(pack) for pack in packers(step, moving, both_ways)]


BINDERS = {"reverse_step": _bind_reverse_step}


def error_word(device: torch.device) -> Tensor:
    """Returns the int32 [1] to which kernels on this device write an op's number."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    word = _errors.get(device)
    if word is None:
        _refuse_capture(device)
        word = _errors[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return word


def _refuse_capture(device: torch.device) -> None:
    """Raises RuntimeError while a CUDA graph is captured: its memory goes when the graph goes."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"fastdiff: expected a launch on {device} before the first one in a CUDA graph, got"
            " none. Run the captured function once before, as CUDA's warm-up asks."
        )


def check(device: torch.device | str) -> None:
    """Raises IndexError if a kernel met an index outside its table since the last check.

    It waits for the device.
    """
    word = error_word(torch.device(device))
    code = int(word.item())
    if code:
        word.zero_()
        op = COUNTED[code - 1]
        op = "reverse_step" if op.startswith("reverse_step") else op
        raise IndexError(
            f"fastdiff.{op}: expected {_INDEX.get(op, 't inside the tables')}, got one outside;"
            " those samples are NaN. Indices count from 0."
        )
