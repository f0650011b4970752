"""What a solver's step may cost, counted and not timed: kernels, host reads, allocations, bytes and
instructions.

One op's launches and a run's are in ops/test_fusion.py and test_loop.py; here every solver is held
to its limits, and the machine code to its instructions per normal (Triton's are in triton_compile).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff.backend import library
from fastdiff.solvers import SOLVERS
from fastdiff.table import OPS

sys.path.append(str(Path(__file__).resolve().parents[2]))
from benchmarks import instructions, memory, solvers, traffic  # noqa: E402
from benchmarks.operations import Maker  # noqa: E402

# instructions per normal of the C++ library's main loop (gcc 12: 25.3, 10.6 and 4.5), and a
# twentieth for other compilers
NORMAL = {"baseline": 26.6, "avx2": 11.1, "avx512": 4.8}


def run(
    solver: str, x: torch.Tensor, out: torch.Tensor, steps: int = 6, **arguments: Any
) -> torch.Tensor:
    return solvers.sampler(solver, out, steps).sample(x_T=x, seed=1, **arguments)


def native_or_skip() -> None:
    if not library.available():
        pytest.skip(f"the C++ library is off: {library.reason()}")


@pytest.mark.parametrize("solver", SOLVERS)
def test_bytes_of_a_step(solver: str) -> None:
    plan = solvers.sampler(solver, torch.zeros(1)).plan
    assert max(traffic.arrays(plan, k) for k in range(len(plan))) <= SOLVERS[solver].arrays


@pytest.mark.cpu_only
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_is_one_kernel(solver: str) -> None:
    native_or_skip()
    x, out = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    with fastdiff.use("cpu"):
        before = {op: library.launches(op) for op in library.COUNTED}
        run(solver, x, out)
        launched = {
            op: library.launches(op) - n for op, n in before.items() if library.launches(op) != n
        }
    assert launched == {"reverse_step": len(solvers.sampler(solver, out, 6).plan)}


@pytest.mark.cpu_only
def test_prepasses_are_named_and_counted() -> None:
    """Rescaled guidance and a dynamic threshold look at whole samples first: one kernel each, and
    only where asked for.
    """
    native_or_skip()
    x = torch.randn(2, 2, 3)
    asked = {
        "dynamic_threshold": 0.9,
        "clip_range": 1.0,
        "guidance_rescale": 0.5,
        "guidance_scale": 2.0,
    }
    sampler = fastdiff.Sampler(lambda x, t, y: x * y, solvers.VP, solver="ddim", steps=4, **asked)
    y = torch.ones(2, 1, 1)
    with fastdiff.use("cpu"):
        before = {op: library.launches(op) for op in library.COUNTED}
        sampler.sample(x_T=x, seed=1, cond={"y": y}, uncond={"y": 0.5 * y})
        launched = {
            op: library.launches(op) - n for op, n in before.items() if library.launches(op) != n
        }
    assert launched == {"reverse_step": 4, "reverse_step_rescale": 4, "reverse_step_threshold": 4}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_reads_nothing_on_the_host(solver: str) -> None:
    """Fake tensors have no values: whatever asks for one raises."""
    with FakeTensorMode():
        x = torch.empty(2, 2, 3)
        assert run(solver, x, torch.empty(2, 2, 3)).shape == x.shape


def test_a_host_read_would_be_seen() -> None:
    with FakeTensorMode(), pytest.raises(Exception, match="_local_scalar_dense"):
        fastdiff.Sampler(lambda x, t: x * float(x.sum()), solvers.VP, steps=2).sample(
            x_T=torch.empty(2, 3), seed=0
        )


@pytest.mark.cpu_only
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_allocates_nothing(solver: str) -> None:
    """By the allocator's own record, Python and the C library included."""
    native_or_skip()
    from benchmarks.test_steps import step

    with torch.no_grad(), fastdiff.use("cpu"):
        work, _ = step(solver, (2, 3, 8, 8), "cpu", peer=False)
        work.verify()
        assert memory.extra_bytes(work.call, "cpu") == 0


@pytest.mark.cpu_only
def test_an_allocation_would_be_seen() -> None:
    x = torch.randn(100)
    assert memory.extra_bytes(lambda: x + 1, "cpu") >= 400


@pytest.mark.cpu_only
@pytest.mark.parametrize("op", OPS)
def test_ops_with_their_outputs_given_allocate_nothing(op: str) -> None:
    native_or_skip()
    with torch.no_grad(), fastdiff.use("cpu"):
        work = getattr(Maker((2, 32, 8, 8)), op)().work
        work.verify()
        assert memory.extra_bytes(work.call, "cpu") == 0


@pytest.mark.cpu_only
@pytest.mark.parametrize("level", NORMAL)
def test_instructions_of_a_normal(level: str) -> None:
    native_or_skip()
    if shutil.which("objdump") is None or shutil.which("nm") is None:
        pytest.skip("binutils (nm, objdump) are not installed")
    if (
        level not in library.compiled_levels()
        or "c++" not in library.build_info()["cpu"]["compiler"]
    ):
        pytest.skip(f"the library has no level {level}, or its compiler is another")
    counted = instructions.of_normals(level)
    assert counted is not None, "the library's symbols are there"
    assert counted <= NORMAL[level]


def test_a_counted_loop() -> None:
    """Two vectors of 8 stored by 5 instructions; a spill and an outer loop do not count."""
    code = [
        (0, "mov", "%rsi,%rax"),
        (1, "vmovaps", "%ymm1,(%rdi)"),
        (2, "vmovups", "%ymm0,0x20(%rdi)"),
        (3, "vmovaps", "%ymm2,0x8(%rsp)"),
        (4, "add", "$0x40,%rdi"),
        (5, "jne", "1 <f+0x1>"),
        (6, "jmp", "0 <f>"),
    ]
    (loop,) = instructions.loops(code)
    assert (len(loop), instructions.stored(loop)) == (5, 16)
