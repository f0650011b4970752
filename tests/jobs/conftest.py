"""Fixtures of several test files: commands in this process, and a finished run to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from damaged_runs import RUN, Cli

from fastdiff.cli import main


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete dataset, which no test modifies."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(["sample", "--out", str(path), *RUN]) == 0
    return path


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of it, to modify."""
    return shutil.copytree(undisturbed, tmp_path / "run")
