"""Variants of the Triton kernels: recorded in the interpreter, and compiled without a GPU.

Triton compiles a kernel anew for other dtypes, absent arguments, constants, and for numbers that
are 1 or multiples of 16 and pointers that are aligned. As a pytest plugin (`-p variants`, with
FASTDIFF_RECORD=<file>) this module writes down every launch in Triton's interpreter, reduced to
what decides the variant. Elsewhere it reads such files and compiles each distinct variant as Triton
would at a launch.
"""

from __future__ import annotations

import importlib
import inspect
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

PACKAGE = "fastdiff_kernels."
Launch = dict[str, Any]
"""A recorded launch: `kernel`, `arguments` by name and `options`, as JSON."""


# ---- recording, in a process of the interpreter


def reduced(value: Any, constant: bool) -> Any:
    """Returns what a variant depends on: [dtype, aligned] of a tensor, a number of the same kind.

    Constants, None and bools stay as they are.
    """
    if isinstance(value, torch.Tensor):
        return [str(value.dtype).removeprefix("torch."), value.data_ptr() % 16 == 0]
    if constant or value is None or isinstance(value, bool) or value == 1:
        return value
    if isinstance(value, int):
        odd = int(value % 16 != 0)
        wide = 0 if -(2**31) <= value < 2**31 else 2**32 if -(2**63) <= value < 2**63 else 2**63
        return wide + 16 + odd
    return float(value)


def recorded(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """Returns a launch as it is written down; `kernel` is the Python function."""
    parameters = inspect.signature(kernel).parameters
    given = dict(zip(parameters, arguments, strict=False)) | options
    return {
        "kernel": f"{kernel.__module__}.{kernel.__name__}",
        "arguments": {
            name: reduced(given.pop(name), "constexpr" in str(parameter.annotation))
            for name, parameter in parameters.items()
        },
        "options": given,
    }


def pytest_load_initial_conftests() -> None:
    """Records the launches of this process, where the environment asks for it."""
    if path := os.environ.get("FASTDIFF_RECORD"):
        _record(Path(path))


def _record(path: Path) -> None:
    """Writes down each new launch.

    Kernels that are launched for an op are not interpreted, which takes hours: the C++ kernels
    give the op's result.
    """
    import device
    from fastdiff_kernels import launch
    from triton.runtime import interpreter

    from fastdiff.backend import cpu

    known: set[str] = set()
    interpret = interpreter.InterpretedFunction.run
    within: list[str] = []

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if self.fn.__module__.startswith(PACKAGE):
            line = json.dumps(recorded(self.fn, arguments, options), sort_keys=True)
            if line not in known:
                known.add(line)
                with path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            if within:
                return None
        return interpret(self, *arguments, grid=grid, warmup=warmup, **options)

    def with_result(op: str, triton_launcher: Any) -> Any:
        def launched(*arguments: Any) -> None:
            within.append(op)
            try:
                triton_launcher(*arguments)
            finally:
                within.pop()
            try:
                cpu.LAUNCHERS[op](*arguments)
                # of empty samples C++ checks nothing
                unchecked = op == "reverse_step" and arguments[0].out.numel() == 0
            except (IndexError, ValueError):
                unchecked = True
            if unchecked:  # Triton's kernels report later what these refuse: rows outside, no noise
                triton_launcher(*arguments)

        return launched

    interpreter.InterpretedFunction.run = run
    launch.LAUNCHERS.update({op: with_result(op, f) for op, f in launch.LAUNCHERS.items()})
    if os.environ.get("FASTDIFF_RECORD_UNBOUND"):
        launch.BINDERS.clear()  # then bound steps take the launchers, and are not interpreted
    device.BACKENDS = ["triton"]  # of the op tests


# ---- compiling, in a process without the interpreter


class Variant(NamedTuple):
    """What Triton would compile for a launch: the specialisation is its own."""

    name: str  # the kernel's
    key: str  # equal for launches that share a compiled kernel
    ones: frozenset[str]  # the arguments that became the constant 1
    source: triton.compiler.ASTSource
    options: dict[str, Any]


def variant(
    kernel: Any, arguments: dict[str, Any], options: dict[str, Any], target: GPUTarget
) -> Variant:
    """Returns the variant of a kernel for these arguments."""
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, given = bind(**arguments, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, given, bound, specialization, given
    )
    name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
    ones = frozenset(
        parameter.name
        for parameter, (kind, _) in zip(kernel.params, specialization, strict=True)
        if kind == "constexpr" and not parameter.is_constexpr and bound[parameter.name] == 1
    )
    return Variant(
        name,
        json.dumps([name, repr(specialization), sorted(options.items())]),
        ones,
        ASTSource(kernel, signature, constants, attributes),
        parsed.__dict__,
    )


def compiled(found: Variant, target: GPUTarget) -> Any:
    """Compiles a variant; raises what Triton raises."""
    return triton.compile(found.source, target=target, options=found.options)


def variant_of(launch: Launch, target: GPUTarget) -> Variant:
    """Returns the variant of a recorded launch."""
    module, _, name = launch["kernel"].rpartition(".")
    kernel = getattr(importlib.import_module(module), name)
    arguments = {
        name: _pointer(*value) if isinstance(value, list) else value
        for name, value in launch["arguments"].items()
    }
    return variant(kernel, arguments, launch["options"], target)


def _pointer(dtype: str, aligned: bool) -> torch.Tensor:
    """Returns a tensor of the dtype whose memory begins at a multiple of 16 bytes, or does not."""
    memory = torch.empty(64, dtype=getattr(torch, dtype))
    first = next(i for i in range(32) if (memory[i:].data_ptr() % 16 == 0) == aligned)
    return memory[first:]


def distinct(files: Iterable[Path], target: GPUTarget) -> dict[str, Launch]:
    """Returns one launch of each variant in files of recorded launches, by the variant's key."""
    found: dict[str, Launch] = {}
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            launch = json.loads(line)
            found.setdefault(variant_of(launch, target).key, launch)
    return found


def with_every_one(launches: Iterable[Launch], target: GPUTarget) -> list[Launch]:
    """Returns few launches in which each kernel's arguments become the constant 1 as in them all.

    A kernel without such arguments is among them once.
    """
    variants = [(variant_of(launch, target), launch) for launch in launches]
    missing = {(v.name, one) for v, _ in variants for one in v.ones or {""}}
    chosen = []
    while missing:
        gains = [len(missing & {(v.name, one) for one in v.ones or {""}}) for v, _ in variants]
        best, launch = variants[gains.index(max(gains))]
        chosen.append(launch)
        missing -= {(best.name, one) for one in best.ones or {""}}
    return chosen


# ---- compiling many variants, in processes of their own


class Result(NamedTuple):
    """What came of compiling a variant: an empty error is success."""

    error: str
    registers: int
    stack: int  # bytes of local memory
    seconds: float


CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def dump(cubin: Path, what: str) -> str:
    """Returns what cuobjdump prints of a cubin."""
    return subprocess.run(
        [CUOBJDUMP, what, cubin], capture_output=True, text=True, check=True
    ).stdout


def compiled_result(launch: Launch, target: GPUTarget) -> Result:
    """Compiles a recorded launch, and returns the error or the size of the result."""
    start = time.monotonic()
    try:
        found = compiled(variant_of(launch, target), target)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(found.asm["cubin"])
            file.flush()
            usage = re.findall(r"(REG|STACK):(\d+)", dump(Path(file.name), "-res-usage"))
    except Exception as error:
        causes = [f"{type(e).__name__}: {e}" for e in (error, error.__cause__) if e is not None]
        return Result("; ".join(causes)[-2000:], 0, 0, time.monotonic() - start)
    sizes = {name: int(value) for name, value in usage}
    return Result("", sizes["REG"], sizes["STACK"], time.monotonic() - start)


def compile_all(
    tasks: Sequence[tuple[Launch, GPUTarget]], processes: int
) -> Iterator[tuple[int, Result]]:
    """Compiles recorded launches in processes; yields (index of the task, result) as they end.

    A process that dies is the failure of its task, and another one takes its place.
    """
    context = multiprocessing.get_context("fork")
    waiting = iter(range(len(tasks)))
    busy: dict[Any, tuple[Any, int]] = {}

    def give(connection: Any, process: Any) -> None:
        index = next(waiting, None)
        connection.send(None if index is None else tasks[index])
        if index is None:
            process.join()
        else:
            busy[connection] = process, index

    def begin() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        give(ours, process)

    for _ in range(min(processes, len(tasks))):
        begin()
    while busy:
        for connection in multiprocessing.connection.wait(list(busy)):
            process, index = busy.pop(connection)
            try:
                result = connection.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                yield index, Result(f"the compiler died with {process.exitcode}", 0, 0, 0.0)
                begin()
            else:
                yield index, result
                give(connection, process)


def _work(connection: Any) -> None:
    for launch, target in iter(connection.recv, None):
        connection.send(compiled_result(launch, target))
