"""Every CPU level gives the same bits: a C++ program prints a digest per (op, dtype, level).

tests/backend/native/digests.txt holds the digests of version 1 of the noise contract. The op tests
compare a level with the oracle, so equal digests mean right bits at every level.
tests/backend/native/README.md says how a level that this machine lacks is run in an emulator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdiff.backend import library as native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def digests() -> dict[tuple[str, str], str]:
    """Returns the expected digest by (op, dtype), or `platform` where platforms may differ."""
    rows = [
        line.split()
        for line in (HERE / "native" / "digests.txt").read_text(encoding="ascii").splitlines()
    ]
    return {(op, kind): digest for op, kind, digest in rows}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns tests/backend/native/levels.cpp, compiled and linked with the installed library."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not native.available() or compiler is None:
        pytest.skip("the C++ library or the compiler is missing")
    library = native.FOLDER / native.LIBRARIES["cpu"]
    to = tmp_path_factory.mktemp("levels") / "levels"
    source = HERE / "native" / "levels.cpp"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        f"-I{ROOT / 'csrc' / 'include'}",
        str(source),
        str(library),
    ]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", str(to)], check=True)
    return to


def test_levels_agree_and_keep_the_contract(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    *lines, last = done.stdout.strip().splitlines()
    assert last == "levels agree"
    got = [line.split() for line in lines]
    new = {f"{op} {kind} {digest}" for op, kind, _, digest in got if (op, kind) not in digests()}
    assert not new, "lines that digests.txt lacks:\n" + "\n".join(sorted(new))
    expected = {(op, kind, level) for op, kind in digests() for level in native.levels()}
    assert {(op, kind, level) for op, kind, level, _ in got} == expected
    assert set(native.OPS) <= {op for op, _ in digests()}
    for op, kind, level, digest in got:
        # float64 exp and log are the platform's: there only the levels' agreement is promised
        assert digests()[op, kind] in (digest, "platform"), f"{op} {kind} at level {level}"
