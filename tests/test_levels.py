"""Every CPU level gives the same bits: a program of its own that prints one digest per (op, level).

tests/native/digests.txt holds the digests of contract version 1; the baseline level is checked against the oracle by the
op tests, so equal digests mean right bits at every level. tests/native/README.md tells how a level that this machine
lacks is run in an emulator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdiff import native

HERE = Path(__file__).parent
ROOT = HERE.parent


def digests() -> dict[str, str]:
    lines = (HERE / "native" / "digests.txt").read_text(encoding="ascii").split("\n")
    return dict(line.split() for line in lines if line)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not native.available() or compiler is None:
        pytest.skip("the C++ library or the compiler is missing")
    library = native.FOLDER / native.LIBRARY
    to = tmp_path_factory.mktemp("levels") / "levels"
    source = HERE / "native" / "levels.cpp"
    command = [compiler, "-std=c++17", "-O1", f"-I{ROOT / 'csrc' / 'include'}", str(source), str(library)]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", str(to)], check=True)
    return to


def test_levels_agree_and_keep_the_contract(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    *lines, last = done.stdout.strip().splitlines()
    assert last == "levels agree"
    got = [line.split() for line in lines]
    assert {(op, level) for op, level, _ in got} == {(op, level) for op in native.OPS for level in native.levels()}
    for op, level, digest in got:
        assert digest == digests()[op], f"{op} at level {level}"
