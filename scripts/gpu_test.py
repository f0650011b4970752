#!/usr/bin/env python3
"""On a machine with a GPU: builds the CUDA library, runs its op tests there, then measures it.

    PYTHONPATH=.:kernels:tests python scripts/gpu_test.py [--library fastdiff/lib/libfastdiff_cuda.so]

The op tests are those that run the kernels' bodies on the host (tests/cuda/test_emulated.py), on the device's memory.
Speed is stated beside a device copy measured in the same run, because a time alone says little; and a step is captured in
a CUDA graph and replayed, which fails if a kernel allocates or waits.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests/cuda")]

from cuda_library import (  # type: ignore[import-not-found]  # noqa: E402
    CHUNK,
    SOURCES,
    Library,
    array,
    draw,
    load,
    view,
)

from fastdiff.table import COLUMNS, INDEX  # noqa: E402

SHAPE = (256, 3, 256, 256)  # far more than a cache holds


def build(folder: Path) -> Path:
    """For this GPU alone."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    path = folder / "libfastdiff_cuda.so"
    flags = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -shared -cudart static -fmad=false -arch=native"
    command = [nvcc, *flags.split(), "-DFD_LEVEL=cuda", f"-I{ROOT / 'csrc/include'}", *map(str, SOURCES)]
    subprocess.run([*command, "-o", str(path)], check=True)
    return path


def milliseconds(work: Callable[[], object]) -> float:
    """The median of 20 runs after 3, each between events."""
    times = []
    for i in range(23):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def table(*used: str) -> torch.Tensor:
    """One row that leads to itself, with 0.5 in the columns used and x0 held in [-1, 1]."""
    row = torch.zeros(1, len(COLUMNS), dtype=torch.float64)
    row[0, [INDEX[name] for name in ("x0_x", "x0_out", *used)]] = 0.5
    row[0, [INDEX["clip_mode"], INDEX["clip_bound"], INDEX["input_scale"]]] = 1.0
    return row.cuda()


def step(library: Library, x: torch.Tensor, out: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> None:
    """In place."""
    none = [0, 0]
    library.call(
        "reverse_step", x, draw(1, None, None, 0, 1), 1, array(x), array(x), array(out), out[0].numel(), rows, 1, index,
        0, 0, 0, 0, none, 0, none, none, none, 0, 0, 0, 0,
    )  # fmt: skip


def works(library: Library, dtype: torch.dtype) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name: how many arrays it moves, and the work."""
    x, out = (torch.randn(SHAPE, device="cuda").to(dtype) for _ in range(2))
    sums, index = torch.empty(SHAPE[0], device="cuda"), torch.zeros(SHAPE[0], dtype=torch.int64, device="cuda")
    space = torch.empty(SHAPE[0], -(-x[0].numel() // CHUNK), device="cuda")
    factor, none = torch.ones(1, dtype=torch.float64, device="cuda"), [0, 0]
    kl = [view(x), view(out), view(None), view(None), sums, space, 0, none, none, none, none]
    nll = [view(x), view(out), view(out), sums, space, 0, none, none]
    call = partial(partial, library.call)
    return {
        "copy": (2, partial(out.copy_, x)),
        "randn": (1, call("randn", x, draw(1), array(x))),
        "q_sample": (2, call("q_sample", x, draw(1), array(x), array(out), index, factor, factor, 1, none)),
        "DDIM step": (3, partial(step, library, x, out, table("x.x", "x.x0"), index)),
        "DDPM step": (3, partial(step, library, x, out, table("x.x", "x.x0", "x.z"), index)),
        "gaussian_kl": (2, call("gaussian_kl", x, 0, *kl)),
        "discretized_gaussian_nll": (3, call("discretized_gaussian_nll", x, 0, *nll)),
    }


def measure(library: Library) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        copied = 0.0
        for name, (arrays, work) in works(library, dtype).items():
            time = milliseconds(work)
            rate = arrays * math.prod(SHAPE) * dtype.itemsize / time / 1e6
            copied = copied or rate
            print(
                f"{str(dtype):16} {name:26} {time * 1e3:9.1f} us {rate:8.0f} GB/s {100 * rate / copied:4.0f} % of copy"
            )


def capture(library: Library) -> None:
    """A step in a graph gives the bits of one outside."""
    start, out = torch.randn(64, 3072, device="cuda"), torch.randn(64, 3072, device="cuda")
    rows, index = table("x.x", "x.x0", "x.z"), torch.zeros(64, dtype=torch.int64, device="cuda")
    expected, x = start.clone(), start.clone()
    step(library, expected, out, rows, index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(library, x, out, rows, index)
    x.copy_(start)
    graph.replay()
    assert torch.equal(x, expected), "a captured step differs"
    print("graph: captured and replayed, the same bits")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="the library to test; by default one is built for this GPU")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = (arguments.library or build(Path(folder))).resolve()
        if why := load(path).fd_cuda_unusable().decode():
            print(why)
            return 1
        library = Library(path, "cuda")
        tests = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests/cuda/test_emulated.py")]
        failed = subprocess.run(tests, cwd=ROOT, env=os.environ | {"FASTDIFF_TEST_CUDA": str(path)}).returncode
        capture(library)
        measure(library)
        return failed


if __name__ == "__main__":
    sys.exit(main())
