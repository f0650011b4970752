"""The compiled CUDA library, on a machine that need not have a driver.

It loads, says why it cannot run, and its kernels have no float32 instruction that rounds
differently from kernels/README.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda_library import OPS, PASSES, ROOT, SOURCES, load

from fastdiff.table import COLUMNS

INSTALLED = ROOT / "fastdiff/lib/libfastdiff_cuda.so"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-DFD_LEVEL=cuda", f"-I{ROOT / 'csrc/include'}"]
# a kernel that calls a function of the host compiles with a warning and does not run
FLAGS += ["-Werror", "cross-execution-space-call"]
EXPORTED = [f"fd_{op}" for op in OPS if op not in PASSES]
EXPORTED += [
    "fd_abi_version",
    "fd_schema",
    "fd_launches",
    "fd_last_error",
    "fd_cuda_archs",
    "fd_cuda_unusable",
]

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
pytestmark = pytest.mark.xdist_group("nvcc")  # the tests share one build


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The installed library or, without one, a build for sm_90 alone."""
    if INSTALLED.exists():
        yield INSTALLED
        return
    if NVCC is None:
        pytest.skip("there is no nvcc and no installed library")
    path = tmp_path_factory.mktemp("nvcc") / "libfastdiff_cuda.so"
    host = [
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
        "-shared",
        "-cudart",
        "static",
        "-arch=sm_90",
    ]
    # the tests only ask what the library reports and exports, so the build may be a slow one
    subprocess.run(
        [NVCC, *FLAGS, *host, "-Xptxas", "-O1", *map(str, SOURCES), "-o", str(path)], check=True
    )
    yield path


def test_it_loads_and_says_what_it_is(compiled: Path) -> None:
    library = load(compiled)
    header = (ROOT / "csrc/include/fastdiff/ops.h").read_text(encoding="utf-8")
    version = re.search(r"#define FD_ABI_VERSION (\d+)", header)
    assert version and library.fd_abi_version() == int(version[1])
    assert library.fd_schema().decode() == ",".join(COLUMNS)
    assert "sm_90" in library.fd_cuda_archs().decode().split(",")
    assert [library.fd_launches(i) for i in range(-1, len(OPS) + 1)] == [0] * (len(OPS) + 2)


def test_it_says_in_a_sentence_why_it_cannot_run(compiled: Path) -> None:
    why = load(compiled).fd_cuda_unusable().decode()
    assert why == "" or (why[0].isupper() and why.endswith(".") and len(why) > 10), why


def test_it_exports_the_abi_and_nothing_else(compiled: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("there is no nm")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(compiled)], check=True, capture_output=True, text=True
    )
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert sorted(n for n in names if n.startswith("fd_")) == sorted(EXPORTED)
    assert not [n for n in names if "fastdiff" in n]


@needs_nvcc
@pytest.mark.parametrize("source", [s for s in SOURCES if s.stem != "api"], ids=lambda s: s.stem)
def test_no_instruction_rounds_otherwise(source: Path, tmp_path: Path) -> None:
    """In float32: no contraction or approximation, no flushed subnormal, no min that drops NaN."""
    ptx = tmp_path / "kernels.ptx"
    subprocess.run(
        [NVCC, *FLAGS, "-ptx", "-arch=compute_90", str(source), "-o", str(ptx)], check=True
    )
    text = ptx.read_text(encoding="utf-8")
    assert ".entry" in text
    instructions = set(re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][\w.]+)\s", text, re.MULTILINE))
    # not float64: the platform's exp and log contract and approximate inside
    single = {i for i in instructions if i.endswith(".f32")}
    assert single and not [
        i for i in single if re.match(r"fma|max|min", i) or re.search(r"\.(approx|ftz|full)\b", i)
    ]
