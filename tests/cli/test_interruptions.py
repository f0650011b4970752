"""The command line when its output is closed, and when it is interrupted before its work."""

from __future__ import annotations

import subprocess
import sys

import pytest
from patience import PATIENCE

from fastdiff.cli import main, solvers
from fastdiff.cli.exit_status import FAILED, INTERRUPTED, PIPE

# an import that Ctrl-C interrupts, whenever it is reached
INTERRUPTED_IMPORT = """
import runpy, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "fastdiff.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
sys.argv = ["fastdiff", "solvers"]
runpy.run_module("fastdiff", run_name="__main__")
"""


def test_a_closed_output_is_no_error() -> None:
    """What `fastdiff solvers | true` does: nothing reads the table."""
    command = [sys.executable, "-m", "fastdiff", "solvers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (PIPE, b"")


def test_another_broken_pipe_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One to a worker, for example: the command has failed."""

    def run(_: object) -> int:
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr(solvers, "run", run)
    assert main(["solvers"]) == FAILED
    assert "a worker is gone" in capsys.readouterr().err


def test_an_interrupted_import_has_no_traceback() -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stderr) == (INTERRUPTED, "fastdiff: interrupted.\n")
