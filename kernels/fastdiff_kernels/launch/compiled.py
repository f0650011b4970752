"""Launches kernels that Triton has compiled before, past Triton's own dispatch.

Triton's `kernel[grid](...)` binds and specialises every argument, looks the result up and compares
the globals of the kernel's file at every launch, which costs most of a launch's host time. Here
only the first launch of a variant goes that way; it returns the compiled kernel that it chose.
Later launches find the variant by a key of their own and call the compiled kernel's launcher with
addresses and integers.

Two launches have the same key only if Triton specialises them alike. The key holds everything that
Triton looks at on a CUDA device: of a tensor the dtype and whether its address is a multiple of 16;
the value of a constant, and of an integer that the kernel specialises; of other integers whether
they fit 32 bits; which arguments are None; the compiler's options; the device. Triton's way is
taken every time by a launch that the key can't describe, on a target other than CUDA, in Triton's
interpreter, and while a hook or a debug setting of Triton is on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

MOST_VARIANTS = 4096
"""How many variants of a kernel are kept. When there are more, all are forgotten."""

_CONSTANT, _SPECIALIZED, _PLAIN = range(3)  # what Triton does with an integer argument
_INT32 = range(-(2**31), 2**31)


class Variant(NamedTuple):
    """A compiled kernel, as its launcher takes it."""

    run: Callable[..., None]
    function: Any
    metadata: Any


class Kernel:
    """A kernel, and its variants that have been launched."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        # an interpreted kernel has no parameters, and nothing that is compiled
        self._parameters = [(p.name, _kind(p)) for p in getattr(kernel, "params", ())]
        self.names = [name for name, _ in self._parameters]
        self._variants: dict[Any, Variant] = {}

    def launch(
        self, grid: tuple[int, int, int], arguments: dict[str, Any], options: dict[str, Any]
    ) -> Variant | None:
        """Launches the kernel on the current stream of the current device.

        Returns the variant that ran, None where such launches take Triton's way every time.
        """
        if not self._parameters or not undisturbed():
            self._kernel[grid](**arguments, **options)
            return None
        active = triton_driver().active
        device = active.get_current_device()
        values: list[Any] = []
        parts: list[Any] = [device, *options.values()]
        memory = 0  # two bits of each tensor
        for name, kind in self._parameters:
            value = arguments[name]
            cls = value.__class__
            if value is None or kind == _CONSTANT:
                parts.append(value)
            elif cls is Tensor or cls is Parameter:
                parts.append(value.dtype)
                on_host, value = value.is_cpu, value.data_ptr()
                # Triton refuses a tensor of the host, so it must not pass for one of the device
                memory = memory << 2 | (value & 15 != 0) << 1 | on_host
            elif cls is int:
                parts.append(int if kind == _PLAIN and value in _INT32 else value)
            else:
                self._kernel[grid](**arguments, **options)
                return None
            values.append(value)
        parts.append(memory)
        key = tuple(parts)
        variant = self._variants.get(key)
        if variant is None:
            return self._first(key, grid, arguments, options)
        stream = active.get_current_stream(device)
        variant.run(*grid, stream, variant.function, variant.metadata, None, None, None, *values)
        return variant

    def _first(
        self,
        key: Any,
        grid: tuple[int, int, int],
        arguments: dict[str, Any],
        options: dict[str, Any],
    ) -> Variant | None:
        """Launches in Triton's way, which compiles, and keeps the compiled kernel."""
        chosen = self._kernel[grid](**arguments, **options)
        # for other targets Triton looks at more: for AMD's at the size of a tensor's memory
        if chosen is None or chosen.metadata.target.backend != "cuda":
            return None
        if len(self._variants) >= MOST_VARIANTS:
            self._variants.clear()
        variant = Variant(chosen.run, chosen.function, chosen.packed_metadata)
        self._variants[key] = variant
        return variant


def _kind(parameter: Any) -> int:
    if parameter.is_constexpr:
        return _CONSTANT
    return _PLAIN if parameter.do_not_specialize else _SPECIALIZED


def undisturbed() -> bool:
    """Returns whether nothing watches or changes Triton's launches, as profilers do."""
    runtime, compilation = _settings()
    return not (
        runtime.debug
        or _functions(runtime.launch_enter_hook)
        or _functions(runtime.launch_exit_hook)
        or runtime.add_stages_inspection_hook
        or compilation.instrumentation_mode
    )


def _functions(hook: Any) -> Any:
    """Returns what a hook of Triton calls: the functions of a chain, else the hook itself."""
    return getattr(hook, "calls", hook)


@functools.cache
def triton_driver() -> Any:
    """Returns what holds Triton's active driver."""
    from triton.runtime import driver

    return driver


@functools.cache
def _settings() -> tuple[Any, Any]:
    from triton import knobs

    return knobs.runtime, knobs.compilation
