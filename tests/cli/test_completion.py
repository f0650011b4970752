"""Shells complete lines of `fastdiff`, by argcomplete where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.cli import COMMANDS, parser_of
from fastdiff.cli.completion import COMPLETERS, actions_of, command_of, model_names


def answer(line: str, tmp_path: Path) -> tuple[list[str], str, int]:
    """Returns (what the command answers a shell that completes this line, stderr, status)."""
    file = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(file),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **asked}
    command = [sys.executable, "-m", "fastdiff"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    found = file.read_text().split("\n") if file.exists() else []
    return [word.strip() for word in found], done.stderr, done.returncode


LINES = {
    "fastdiff ": (set(COMMANDS), {"--steps"}),
    "fastdiff sample --solver dpm++2m": ({"dpm++2m", "dpm++2m_sde"}, {"ddim"}),
    "fastdiff bench --model f": ({"fashion-mnist", "folder/"}, {"other/"}),
}


@pytest.mark.parametrize("line", LINES)
def test_what_a_shell_is_told(line: str, tmp_path: Path) -> None:
    """Without argcomplete it is one sentence and status 2, and the shell shows nothing."""
    for name in ("folder", "other"):
        (tmp_path / name).mkdir()
    wanted, unwanted = LINES[line]
    words, error, status = answer(line, tmp_path)
    if importlib.util.find_spec("argcomplete") is None:
        assert (status, words) == (2, []) and error.count("\n") == 1
        assert "expected argcomplete to complete a command line, got none installed." in error
    else:
        assert wanted <= set(words) and not unwanted & set(words), (words, error)
        assert status == 0


def test_only_the_named_command_is_imported() -> None:
    def named(line: str) -> str:
        return command_of(COMMANDS, {"COMP_LINE": line, "COMP_POINT": str(len(line))})

    assert named("fastdiff sample --mo") == "sample" and named("fastdiff sam") == ""
    assert named("fastdiff sample") == "" and named("python -m fastdiff info x") == "info"


def test_values_of_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_names("ru") == ["fashion-mnist", "runs/"]
    assert model_names("runs/") == ["fashion-mnist", "runs/mine/"]
    flags = {flag for action in actions_of(parser_of()) for flag in action.option_strings}
    assert COMPLETERS.keys() <= flags


def test_argcomplete_is_imported_only_for_shells() -> None:
    code = "import sys, fastdiff.cli; fastdiff.cli.parser_of(); print('argcomplete' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
