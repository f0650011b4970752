"""Compiles the CUDA sources for the host, where a launch is a loop (csrc/cuda/launch.h)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
FLAGS = (
    "-std=c++17 -O1 -Wall -Wextra -Werror -fPIC -ffp-contract=off -fvisibility=hidden"
    " -DFD_LEVEL=cuda -Icsrc/include"
)
_made: dict[str, Path | None] = {}


def emulated_library(folders: pytest.TempPathFactory) -> Path | None:
    """Returns the path of the library, built once per session; None without a compiler."""
    if "path" not in _made:
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
        _made["path"] = (
            compile_for_the_host(shlex.split(compiler), folders.mktemp("emulated"))
            if compiler
            else None
        )
    return _made["path"]


def compile_for_the_host(compiler: list[str], folder: Path, *extra: str) -> Path:
    """Compiles every file in csrc/cuda, with extra flags, and returns the path of the library."""
    flags = [*FLAGS.split(), *extra]

    def compile_one(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        subprocess.run(
            [*compiler, "-x", "c++", *flags, "-c", source, "-o", to], cwd=ROOT, check=True
        )
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    path = folder / "libfastdiff_cuda_host.so"
    subprocess.run([*compiler, *flags, "-shared", *objects, "-o", path], cwd=ROOT, check=True)
    return path
