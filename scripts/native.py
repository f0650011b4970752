"""The native build of set-up, by `setup.py build_native` when sources, settings or tools change."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

# what setup.py reads from the environment
_SETTINGS = (
    "CXX",
    "CXXFLAGS",
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "FASTDIFF_BUILD_CPU",
    "FASTDIFF_BUILD_CUDA",
)
_TOOLS = ("c++", "g++", "clang++", "nvcc")


def native_key(root: Path) -> str:
    """Returns a hash of the sources, the settings and the paths of the compilers."""
    digest = hashlib.sha256()
    for path in [root / "setup.py", *sorted((root / "csrc").rglob("*"))]:
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    digest.update(repr([os.environ.get(name) for name in _SETTINGS]).encode())
    digest.update(repr([shutil.which(tool) for tool in _TOOLS]).encode())
    return digest.hexdigest()


def built(root: Path) -> bool:
    return (root / "fastdiff" / "lib" / "build_info.json").exists()


def build_native(root: Path, python: str) -> None:
    """Builds the libraries that can be built into fastdiff/lib. Ends the process if that fails.

    Without a compiler, build_info.json has the reason, and fastdiff runs its slower torch backend.
    """
    if subprocess.run([python, "-c", "import setuptools"], capture_output=True).returncode:
        print(
            f"fastdiff set-up: {python} lacks setuptools, so the native library is not built and"
            f" the slower torch backend runs; install it ({python} -m pip install setuptools) and"
            " run make again.",
            flush=True,
        )
        return
    print("fastdiff set-up: build the native library", flush=True)
    # ninja, where pip put it
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [python, "setup.py", "-q", "build_native"]
    if subprocess.run(command, cwd=root, env={**os.environ, "PATH": path}).returncode:
        sys.exit(
            "fastdiff set-up: the native build failed (see the reason above); fix it, or build"
            " without the library: FASTDIFF_BUILD_CPU=0 FASTDIFF_BUILD_CUDA=0 make."
        )
