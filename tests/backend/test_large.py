"""Large tensors: index arithmetic past 2³¹ elements without the memory, and one real tensor.

The real tensor has more than 2³¹ bytes. tests/backend/gpu has one of more than 2³¹ elements.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.backend import library as native
from fastdiff.reference.randn import _box_muller, philox4x32
from fastdiff.table import INDEX

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "source, folders", [("native", "-Icsrc/cpu"), ("cuda", "-Icsrc/cuda -DFD_LEVEL=cuda")]
)
def test_index_arithmetic(source: str, folders: str, tmp_path: Path) -> None:
    """The tiles of the C++ kernels and the threads of the CUDA kernels cover every element once."""
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or "")
    if not compiler:
        pytest.skip("no C++ compiler")
    program, sources = tmp_path / "index", [f"tests/backend/{source}/index.cpp"]
    if source == "cuda":
        sources = ["-x", "c++", *sources, "csrc/cuda/api.cu"]
    command = [
        *compiler,
        "-std=c++17",
        "-O2",
        "-ffp-contract=off",
        "-Icsrc/include",
        *folders.split(),
        *sources,
    ]
    subprocess.run([*command, "-o", str(program)], cwd=ROOT, check=True)
    answer = subprocess.run([program], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "right\n")


def test_triton_launches_cover_large_tensors() -> None:
    """The grid reaches every element and stays inside CUDA's limits, for tensors on `meta`.

    The offsets inside a kernel are int64 (fastdiff_kernels/tiling.py).
    """
    pytest.importorskip("triton")
    from fastdiff_kernels import launch

    for batch, size in [(3, 2**31 + 5), (2, 2**34 - 3), (2**31 + 7, 2), (70_000, 33)]:
        call = launch.randn_call(
            torch.empty((batch, size), device="meta"), 1, None, None, 0, 0, False
        )
        samples, elements = call.arguments["S"], call.arguments["E"]
        x, y, z = call.grid
        covered = y * z * call.arguments["each"] * elements  # a program has several chunks
        assert x * samples >= batch and covered >= size
        assert x < 2**31 and y <= 65_535 and z <= 65_535
        assert (x - 1) * samples < batch, "a program has no sample"


@pytest.mark.skipif(not native.available(), reason="the C++ library is off")
def test_a_tensor_of_more_than_two_to_the_31_bytes() -> None:
    """Two samples of 2²⁸ + 3 float32 values: their first and last elements equal the oracle's.

    The values before and after the tensor stay as they are.
    """
    n = 2**28 + 3
    buffer = torch.empty(2 * n + 2)
    buffer[0] = buffer[-1] = 7.0
    x = buffer[1:-1].view(2, n)
    with fastdiff.use("cpu"):
        ops.randn((2, n), seed=5, stream=1, out=x)
    for b in (0, 1):
        for group in (0, 1, 2**26 - 1, 2**26):
            words = philox4x32(np.array([group, 0, b, 1 << 24]), np.array([5, 0]))
            first, second = _box_muller(words[[0, 2]], words[[1, 3]])
            expected = np.stack([first, second], axis=1).ravel()[: n - 4 * group]
            assert np.array_equal(x[b, 4 * group : 4 * group + 4].numpy(), expected)
    assert buffer[0] == 7 and buffer[-1] == 7
    with fastdiff.use("cpu"):  # a step in place: x0 = x - x = 0, and the next x is x/2 - x0/4
        table = torch.zeros(1, len(INDEX), dtype=torch.float64)
        for name, value in {"x0_x": 1.0, "x0_out": -1.0, "x.x": 0.5, "x.x0": -0.25}.items():
            table[0, INDEX[name]] = value
        tail = x[1, -5:].clone()
        ops.reverse_step(x, x, table, torch.zeros(2, dtype=torch.int64), out=x)
    assert torch.equal(x[1, -5:], tail * 0.5) and buffer[-1] == 7
