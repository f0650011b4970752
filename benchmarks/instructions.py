"""The ceiling by arithmetic of noise kernels: instructions per element, elements per second.

Instructions are counted in the machine code. On a CPU, objdump disassembles the C++ library; what
counts is the main loop of `draw_run` at the level in use, that is the innermost loop with Philox's
multiplications, divided by the normals that it stores per iteration.

On a GPU, Triton's cuobjdump disassembles the kernel. What counts is what a warp issues, not what
the file holds (`path_lengths`): the set-up once, and the loop over a program's chunks as often as
the launch makes it run, divided by the elements of a thread. Slow paths of a square root or a
division, which are calls, don't count: the arguments of the kernels' own never take them.

The ceiling on a CPU is measured: the slope of the op's time between 1,024 and 4,096 elements of one
sample. These stay in the first-level cache, so the slope contains neither the call nor memory. On a
GPU it is the issue rate, four warp instructions per multiprocessor and clock, divided by the count.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import memory
from fastdiff.backend import library
from fastdiff.ops.step import StepArguments
from fastdiff.table import COLUMNS

Code = list[tuple[int, str, str]]  # address, operation, operands
BYTES = {"%xmm": 16, "%ymm": 32, "%zmm": 64}
SMALL, LARGER = 1024, 4096


def functions(binary: Path, containing: str, most: int = 1) -> dict[str, Code]:
    """Returns up to `most` disassembled functions whose demangled names contain a text.

    Empty without binutils.
    """
    nm, objdump = shutil.which("nm"), shutil.which("objdump")
    if nm is None or objdump is None:
        return {}
    symbols = re.findall(
        r"^([0-9a-f]+) ([0-9a-f]+) [tT] (.*)$", _output(nm, "-C", "-S", binary), re.MULTILINE
    )
    found: dict[str, Code] = {}
    for start, size, name in [s for s in symbols if containing in s[2]][:most]:
        begin, end = int(start, 16), int(start, 16) + int(size, 16)
        span = f"--start-address={begin:#x}", f"--stop-address={end:#x}"
        text = _output(objdump, "-d", "--no-show-raw-insn", *span, binary)
        lines = re.findall(r"^\s+([0-9a-f]+):\s+(\S+)[ \t]*(.*)$", text, re.MULTILINE)
        found[f"{name} at {start}"] = [
            (int(a, 16), operation, operands) for a, operation, operands in lines
        ]
    return found


def _output(*command: Any) -> str:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True
    ).stdout


def loops(code: Code) -> list[Code]:
    """Returns the innermost loops: from the target of a backward jump to the jump, with no other
    such span inside.
    """
    index = {address: i for i, (address, _, _) in enumerate(code)}
    spans = []
    for i, (address, operation, operands) in enumerate(code):
        target = re.match(r"([0-9a-f]+)\b", operands) if operation.startswith("j") else None
        if target and (to := int(target[1], 16)) <= address and to in index:
            spans.append((index[to], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [code[first : last + 1] for first, last in inner]


def stored(code: Code) -> int:
    """Returns how many float32 values a loop stores with vector moves, except onto the stack."""
    total = 0
    for _, operation, operands in code:
        found = re.match(r"(%[xyz]mm)\d+,.*\((%\w+)", operands) if "mov" in operation else None
        if found and found[2] != "%rsp":
            total += BYTES[found[1]] // 4
    return total


@functools.cache
def of_normals(level: str) -> float | None:
    """Returns the instructions per normal of the C++ library's main loop at a level.

    None where they can't be counted.
    """
    path = library.FOLDER / library.LIBRARIES["cpu"]
    if not path.exists():
        return None
    counts = []
    for code in functions(path, f"fastdiff::{level}::draw_run(").values():
        for loop in loops(code):
            multiplies = sum("pmuludq" in operation for _, operation, _ in loop)
            # Philox's ten rounds, the first of which are partly constant
            if multiplies >= 18 and stored(loop):
                counts.append((stored(loop), len(loop)))
    if not counts:
        return None
    values, instructions = max(counts)  # the main loop draws most normals per iteration
    return instructions / values


class Instruction(NamedTuple):
    """An instruction of a GPU: `guard` is its predicate or empty, `target` a jump's address."""

    address: int
    guard: str
    operation: str
    target: int | None


def machine_code(cubin: bytes) -> list[Instruction]:
    """Returns the instructions of a cubin with one kernel, without the padding at its end."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return parsed(_output(tool, "-sass", file.name))


def parsed(text: str) -> list[Instruction]:
    """Returns the instructions that cuobjdump printed."""
    code = []
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\S+ )?([A-Z][\w.]*)([^;]*);"
    for address, guard, operation, operands in re.findall(pattern, text):
        jumps = operation.split(".")[0] in ("BRA", "CALL")
        target = re.search(r"0x([0-9a-f]+)", operands) if jumps else None
        if operation != "NOP":
            to = int(target[1], 16) if target else None
            code.append(Instruction(int(address, 16), guard.strip(), operation, to))
    return code


def path_lengths(code: list[Instruction], trips: float) -> list[float]:
    """Returns how many instructions a warp issues on each path through a kernel, ascending.

    A loop, from the target of a backward jump to the jump, runs `trips` times. Where a jump forward
    depends on a condition, both ways are paths, except one to a call: it is the slow path of a
    square root or a division. A conditional exit is for programs without work, and is not taken.
    Instructions with a predicate count: they take their turn even where they do nothing. The
    longest path is what a kernel costs where every branch has work.
    """
    index = {line.address: i for i, line in enumerate(code)}
    loops: dict[int, int] = {}  # from the first instruction to the jump back
    for i, line in enumerate(code):
        if line.operation == "BRA" and line.target is not None and line.target < line.address:
            first = index[line.target]
            loops[first] = max(i, loops.get(first, i))

    def calls(i: int) -> bool:
        """Whether a call follows before the next jump."""
        while not code[i].operation.startswith(("BRA", "EXIT", "RET")):
            if code[i].operation.startswith("CALL"):
                return True
            i += 1
        return False

    def ways(i: int) -> list[int]:
        """Where a jump leads on a usual path."""
        target, line = index[code[i].target or 0], code[i]
        if not line.guard:
            return [target]
        if any(first <= i <= end < target for first, end in loops.items()):
            return [i + 1]  # out of a loop, which `after` counts
        if any(i < first and end < target for first, end in loops.items()):
            return [i + 1]  # past a loop without trips
        return [way for way in (target, i + 1) if not calls(way)] or [i + 1]

    def after(first: int) -> frozenset[int]:
        """Where a loop leads: past its jump back, or where a jump or an exit in it leads."""
        end = loops[first]
        if code[end].guard:
            return frozenset((end + 1,))
        out = (line for line in code[first:end] if line.guard)
        jumps = (line for line in out if line.operation == "BRA" and line.target is not None)
        found = {index[line.target or 0] for line in jumps}
        return frozenset(i for i in found if i > end)

    @functools.cache
    def lengths(i: int, end: int | None) -> frozenset[float]:
        """The lengths of paths from i to the kernel's exit, or through the jump back `end`."""
        count = 0.0
        while True:
            if i in loops and loops[i] != end:
                rest = [n for way in after(i) for n in lengths(way, end)] or [0.0]
                body = lengths(i, loops[i])
                return frozenset(count + trips * a + b for a in body for b in rest)
            count += 1
            line = code[i]
            if i == end or (line.operation == "EXIT" and not line.guard):
                return frozenset((count,))
            if line.operation == "BRA" and line.target is not None:
                to = ways(i)
                if len(to) > 1:
                    return frozenset(count + n for way in to for n in lengths(way, end))
                i = to[0]
            else:
                i += 1

    return sorted(lengths(0, None))


def compiled(call: Any, target: tuple[int, int] = (9, 0)) -> bytes:
    """Returns the cubin that Triton compiles for a launch on a GPU of this compute capability.

    call: what a function of `fastdiff_kernels.launch` returns.
    """
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    gpu = GPUTarget("cuda", 10 * target[0] + target[1], 32)
    kernel, backend = call.kernel(), make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, keywords = bind(**call.arguments, **call.options)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, keywords
    )
    source = ASTSource(kernel, signature, constants, attributes)
    cubin: bytes = compile_kernel(source, target=gpu, options=options.__dict__).asm["cubin"]
    return cubin


def per_element(call: Any, target: tuple[int, int] = (9, 0)) -> list[float]:
    """Returns the instructions per element of a launch on each of its kernel's paths, ascending.

    They are those of all programs, divided by the elements of the batch: threads without an
    element cost the others.
    """
    programs = call.grid[0] * call.grid[1] * call.grid[2]
    batch, size = call.arguments["batch"], call.arguments["size"]
    chunks = -(-size // call.arguments["E"])
    code = machine_code(compiled(call, target))
    of_a_thread = batch * size / (programs * 32 * call.options["num_warps"])
    return [n / of_a_thread for n in path_lengths(code, chunks / call.grid[1])]


def ceiling(
    make: Callable[[int], Callable[[], Any]], device: str, call: Callable[[], Any] | None = None
) -> dict[str, Any] | None:
    """Returns {per_element, ceiling_Melem_per_s, how} of a noise kernel.

    Args:
        make: returns the op's call on one sample of n elements.
        call: on a GPU, returns the launch whose instructions are counted.
    """
    if device == "cuda":
        if call is None or importlib.util.find_spec("triton") is None:
            return None
        per = per_element(call(), torch.cuda.get_device_capability())[-1]
        properties = torch.cuda.get_device_properties(0)
        clock = getattr(properties, "clock_rate", 0) * 1e3  # Hz; absent in some versions of torch
        if not clock:
            return None
        rate = 4 * 32 * properties.multi_processor_count * clock / per
        return {
            "per_element": round(per, 1),
            "ceiling_Melem_per_s": round(rate / 1e6, 1),
            "how": "issue rate",
        }
    if not library.available():
        return None
    clock_of, small, larger = memory.stopwatch(device), make(SMALL), make(LARGER)
    pairs = []
    for _ in range(5):
        small(), larger()
    for _ in range(200):
        pairs.append((clock_of(small), clock_of(larger)))
    slope = statistics.median(b for _, b in pairs) - statistics.median(a for a, _ in pairs)
    if slope <= 0:
        return None
    counted = of_normals(library.levels()[-1])
    return {
        "per_element": None if counted is None else round(counted, 2),
        "ceiling_Melem_per_s": round((LARGER - SMALL) / slope / 1e6, 1),
        "how": "slope within the first-level cache",
    }


def launch_of(op: str, like: torch.Tensor, uses: int = 0) -> Callable[[], Any]:
    """Returns a function that makes the Triton launch of a noise kernel on tensors like this one.

    uses: a step's mask of columns.
    """

    def call() -> Any:
        from fastdiff_kernels import launch

        batch, device = like.shape[0], like.device
        draw = (1, None, None, 0)
        whole = torch.zeros(batch, dtype=torch.int64, device=device)
        value = torch.zeros(
            batch,
            dtype=torch.float64 if like.dtype == torch.float64 else torch.float32,
            device=device,
        )
        table = torch.zeros(1000, dtype=torch.float64, device=device)
        if op == "randn":
            return launch.randn_call(like, *draw, 0, False)
        if op == "q_sample":
            return launch.q_sample_call(like, like, whole, table, table, None, *draw, 2, False)
        if op == "reparameterize":
            return launch.reparameterize_call(like, like, like, *draw, 3, False)
        if op == "noise_mse":
            return launch.noise_mse_call(value, value.repeat(3), like, value, *draw, 2, False)
        assert op == "reverse_step"
        rows = torch.zeros(51, len(COLUMNS), dtype=torch.float64, device=device)
        return launch.reverse_step_call(
            StepArguments(like, like, rows, whole, out=like, seed=1, used=uses, row_out=whole)
        )

    return call
