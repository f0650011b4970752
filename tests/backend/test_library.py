"""A C library of another build is not loaded, and the reason says what to do."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdiff.backend import library
from fastdiff.backend.abi import ABI_VERSION
from fastdiff.table import COLUMNS, OPS

SCHEMA = ",".join(COLUMNS)


def source(version: int, schema: str, ops: tuple[str, ...]) -> str:
    """Returns the source of a library with the functions that loading calls and empty ops."""
    return f"""
        extern "C" {{
        long long fd_abi_version(void) {{ return {version}; }}
        const char* fd_schema(void) {{ return "{schema}"; }}
        const char* fd_last_error(void) {{ return ""; }}
        const char* fd_levels(void) {{ return "baseline"; }}
        unsigned long long fd_launches(long long) {{ return 0; }}
        long long fd_cpu_level(void) {{ return 0; }}
        long long fd_openmp(void) {{ return 0; }}
        {"".join(f"int fd_{op}(const void*) {{ return 0; }}" for op in ops)}
        }}
    """


@pytest.mark.parametrize(
    "version, schema, ops, loads, reason",
    [
        (ABI_VERSION, SCHEMA, OPS, True, "level baseline"),
        (ABI_VERSION - 1, SCHEMA, OPS, False, f"has ABI version {ABI_VERSION - 1}, expected"),
        (ABI_VERSION, "network,t", OPS, False, "has another table schema: build it again"),
        (ABI_VERSION, SCHEMA, OPS[:-1], False, f"lacks {OPS[-1]}: build it again"),
    ],
    ids=["this build", "version", "schema", "op"],
)
def test_what_is_loaded(
    version: int,
    schema: str,
    ops: tuple[str, ...],
    loads: bool,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or "")
    if not compiler:
        pytest.skip("no C++ compiler")
    path = tmp_path / "library.so"
    (tmp_path / "library.cpp").write_text(source(version, schema, ops), encoding="ascii")
    command = [*compiler, "-shared", "-fPIC", str(tmp_path / "library.cpp"), "-o", str(path)]
    subprocess.run(command, check=True)
    monkeypatch.setenv("FASTDIFF_LIB", str(path))
    monkeypatch.delenv("FASTDIFF_CPU_LEVEL", raising=False)
    loaded = library.load.__wrapped__("cpu")
    assert reason in loaded.reason
    assert (loaded.handle is not None) == loads


def test_a_file_that_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "library.so"
    path.write_text("text", encoding="ascii")
    monkeypatch.setenv("FASTDIFF_LIB", str(path))
    loaded = library.load.__wrapped__("cpu")
    assert loaded.handle is None
    assert f"FASTDIFF_LIB={path} is no fastdiff library for cpu, lacks" in loaded.reason


def _compiled(text: str, path: Path) -> Path:
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or "")
    if not compiler:
        pytest.skip("no C++ compiler")
    path.with_suffix(".cpp").write_text(text, encoding="ascii")
    subprocess.run(
        [*compiler, "-shared", "-fPIC", str(path.with_suffix(".cpp")), "-o", str(path)], check=True
    )
    return path


RUNS = """
    #include <cstdio>
    struct Runs {{ Runs() {{ std::fclose(std::fopen("{mark}", "w")); }} }} runs;
"""


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_code_of_another_library_does_not_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading runs initialisers, so the names of the ABI are looked for before."""
    mark, variable = tmp_path / "ran", library._OVERRIDES[kind]
    path = _compiled(RUNS.format(mark=mark), tmp_path / "other.so")
    monkeypatch.setenv(variable, str(path))
    loaded = library.load.__wrapped__(kind)
    assert loaded.handle is None and not mark.exists()
    assert f"{variable}={path} is no fastdiff library for {kind}" in loaded.reason


def test_a_library_of_the_other_kind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = source(ABI_VERSION, SCHEMA, OPS).replace("fd_levels", "fd_cuda_archs")
    path = _compiled(text.replace("fd_openmp", "fd_cuda_unusable"), tmp_path / "cuda.so")
    monkeypatch.setenv("FASTDIFF_LIB", str(path))
    assert "lacks fd_levels, fd_openmp" in library.load.__wrapped__("cpu").reason


@pytest.mark.parametrize("name", ["missing.so", "", "folder", "pipe", "empty"])
def test_paths_that_are_no_library(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("FASTDIFF_CUDA_LIB", str(tmp_path / name))
    loaded = library.load.__wrapped__("cuda")
    assert loaded.handle is None and "FASTDIFF_CUDA_LIB=" in loaded.reason


def test_a_name_is_a_file_here_and_not_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compiled(source(ABI_VERSION, SCHEMA, OPS), tmp_path / "mine.so")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTDIFF_LIB", "mine.so")
    monkeypatch.delenv("FASTDIFF_CPU_LEVEL", raising=False)
    loaded = library.load.__wrapped__("cpu")
    assert loaded.handle is not None and loaded.reason.endswith("from FASTDIFF_LIB=mine.so")
