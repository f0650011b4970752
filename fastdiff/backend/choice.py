"""Chooses the backend that runs an op, and reports the reason.

Backends are `triton` (GPU default), `cuda` (CUDA C++, GPU fallback), `cpu` (C++, CPU default) and
`torch` (eager, on every device). Each is one module with a dict LAUNCHERS, which has the same names
and signatures in all of them. Automatic choice takes the first backend that runs on the device. An
explicit choice (`backend=`, `fastdiff.use(...)`, FASTDIFF_BACKEND) that can't be met raises with
the reason. The choice is cached by op, device type and explicit name; the environment is read once,
at import.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

from .abi import device_of

P = ParamSpec("P")
R = TypeVar("R")


class Backend(NamedTuple):
    """A backend's state on this machine: `available`, and the `reason` in one sentence."""

    available: bool
    reason: str


ORDER = ("triton", "cuda", "cpu", "torch")
_MODULES = {
    "triton": "fastdiff_kernels.launch",
    "cuda": "fastdiff.backend.cuda",
    "cpu": "fastdiff.backend.cpu",
    "torch": "fastdiff.backend.eager",
}
_DEVICES: dict[str, tuple[str, ...]] = {
    "triton": ("cuda",),
    "cuda": ("cuda",),
    "cpu": ("cpu",),
    "torch": (),  # every device
}

_environment = os.environ.get("FASTDIFF_BACKEND") or None
_check = os.environ.get("FASTDIFF_CHECK") == "1"
_explicit: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "fastdiff_backend", default=_environment
)


def _interpreting() -> bool:
    """Returns whether Triton runs its kernels in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _on_host(name: str) -> bool:
    """Returns whether a GPU backend runs on CPU tensors.

    Interpreted Triton kernels do, and CUDA kernels that are compiled for the host.
    """
    if name == "triton":
        return _interpreting()
    if name == "cuda":
        from . import library

        return library.emulated()
    return False


@functools.cache
def _state(name: str) -> Backend:
    if name == "torch":
        return Backend(True, f"torch {torch.__version__}")
    if name in ("cpu", "cuda"):
        from . import library

        return Backend(library.available(name), library.reason(name))
    for package in ("fastdiff_kernels", "triton"):
        if importlib.util.find_spec(package) is None:
            return Backend(False, f"the package {package} is not installed")
    if _interpreting():
        return Backend(True, "TRITON_INTERPRET=1: kernels are interpreted on the CPU")
    if not torch.cuda.is_available():
        return Backend(False, "torch sees no GPU")
    return Backend(True, f"GPU {torch.cuda.get_device_name()}")


def backends() -> dict[str, Backend]:
    """Returns every backend, in order of preference: whether it can be used here, and why."""
    return {name: _state(name) for name in ORDER}


class use:  # noqa: N801  # called as a function
    """Runs ops on the named backend: from the call on, and in a `with` block until its end.

    fastdiff.use("torch")         # from here on, in this thread or task
    with fastdiff.use("torch"):   # in the block
    @fastdiff.use("torch")        # in the calls of a function

    Args:
        name: of a backend; None restores automatic choice.

    Raises ValueError for an unknown name and RuntimeError for a backend that is off on this
    machine.
    """

    def __init__(self, name: str | None):
        if name is not None:
            _require(name)
        self._name, self._before = name, _explicit.get()
        _explicit.set(name)

    def __enter__(self) -> None:
        _explicit.set(self._name)

    def __exit__(self, *error: object) -> None:
        _explicit.set(self._before)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        _explicit.set(self._before)  # decorating a function is no statement

        @functools.wraps(function)
        def on_backend(*args: P.args, **kwargs: P.kwargs) -> R:
            with use(self._name):
                return function(*args, **kwargs)

        return on_backend


def _require(name: str) -> None:
    if name not in ORDER:
        raise ValueError(f"fastdiff.use: expected a backend in {list(ORDER)}, got {name!r}.")
    state = _state(name)
    if not state.available:
        raise RuntimeError(
            f"fastdiff.use: backend {name!r} is off here: {state.reason}. See `fastdiff doctor`."
        )


def _serves(name: str, device: str) -> bool:
    kinds = _DEVICES[name]
    return not kinds or device in kinds or (device == "cpu" and _on_host(name))


@functools.cache
def _resolve(op: str, device: str, explicit: str | None) -> tuple[str, Callable[..., None]]:
    if explicit is not None:
        _require(explicit)
        if not _serves(explicit, device):
            raise RuntimeError(
                f"fastdiff.{op}: backend {explicit!r} does not run on device {device!r}. Move the"
                " tensors or name another."
            )
        return explicit, _launcher(explicit, op)
    # GPU kernels on the host are for tests only: automatic choice never takes them for a CPU
    candidates = [n for n in ORDER if not _DEVICES[n] or device in _DEVICES[n]]
    chosen = next(n for n in candidates if _state(n).available)
    required = os.environ.get("FASTDIFF_REQUIRE")
    if required and required in _DEVICES and _serves(required, device) and chosen != required:
        raise RuntimeError(
            f"fastdiff.{op}: FASTDIFF_REQUIRE={required}, got {chosen!r}:"
            f" {_state(required).reason}."
        )
    return chosen, _launcher(chosen, op)


def _launcher(name: str, op: str) -> Callable[..., None]:
    module = importlib.import_module(_MODULES[name])
    launch = module.LAUNCHERS[op]
    if not _check or name not in ("triton", "cuda"):
        return launch

    def checked(*arguments: Any) -> None:
        launch(*arguments)
        module.check(device_of(arguments))

    return checked


def check(device: torch.device | str) -> None:
    """Raises IndexError if a GPU kernel met a time or row outside its table since the last check.

    Kernels never read out of range: they make such samples NaN and set an error word. Reading it
    waits for the device, so it is read after a run, or after every op with FASTDIFF_CHECK=1.
    """
    for name in ("triton", "cuda"):
        if _state(name).available and _serves(name, torch.device(device).type):
            importlib.import_module(_MODULES[name]).check(device)


@functools.cache
def prepare(device: torch.device) -> None:
    """Allocates what the GPU backends keep on a device, before a CUDA graph is captured there."""
    for name in ("triton", "cuda"):
        if device.type == "cuda" and _state(name).available:
            importlib.import_module(_MODULES[name]).error_word(device)


def default_device(name: str | None = None) -> torch.device | None:
    """Returns the device of new tensors for the backend `name`, default the one in use.

    It is None, torch's default device, unless the backend can't run there; then it is the kind of
    device on which the backend runs. A compiled function keeps the one of its trace.
    """
    name = name or chosen()
    # an unknown name is refused where the op chooses its backend
    if name not in _DEVICES or _serves(name, torch.empty(0).device.type):
        return None
    return torch.device(_DEVICES[name][0])


# what torch.compiler.assume_constant_result does, without its import of the compiler (1.5 s)
default_device._dynamo_marked_constant = True  # type: ignore[attr-defined]


def backend_for(op: str, device: torch.device | str) -> str:
    """Returns the name of the backend that would run this op on this device now."""
    return _resolve(op, torch.device(device).type, _explicit.get())[0]


def chosen() -> str | None:
    """Returns the name of the explicitly chosen backend; None for automatic choice."""
    return _explicit.get()


def launcher(op: str, device: torch.device) -> Callable[..., Any]:
    """Returns the function that launches this op on this device."""
    return _resolve(op, device.type, _explicit.get())[1]


def binder(op: str, device: torch.device) -> Callable[..., Any] | None:
    """Returns the backend's function that packs a launch once for many calls, or None.

    binder(arguments, names, both_ways) returns functions of the values that replace the arguments'
    fields of those names: one that launches the op, and with both_ways one that exchanges `row` and
    `row_out`.
    """
    name, _ = _resolve(op, device.type, _explicit.get())
    if _check and name in ("triton", "cuda"):
        return None
    return getattr(importlib.import_module(_MODULES[name]), "BINDERS", {}).get(op)
