"""Each script of this folder is what one kind of user does, with nothing but what the docs say.

It runs in an empty folder, with `fastdiff` and `python` on the path, and ends with status 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

HERE = Path(__file__).resolve().parent
HELPERS = {"make_pictures.py", "test_walks.py"}  # what scripts call, and this file
SCRIPTS = sorted(p.name for p in HERE.iterdir() if p.suffix in (".py", ".sh"))

pytestmark = pytest.mark.cpu_only


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n not in HELPERS])
def test_walk(name: str, tmp_path: Path) -> None:
    tools, here = tmp_path / "bin", tmp_path / "work"
    tools.mkdir()
    here.mkdir()
    for tool, words in (("fastdiff", "-m fastdiff"), ("python", "")):
        (tools / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (tools / tool).chmod(0o755)
    for script in HERE.glob("*.py"):
        (here / script.name).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    command = ["python", name] if name.endswith(".py") else ["sh", "-eu", str(HERE / name)]
    done = subprocess.run(
        command,
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
