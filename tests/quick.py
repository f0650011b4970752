"""`pytest --seconds N`: the first case of each test, near the changed files first, for N seconds.

Contributors run it while they edit (`make test-quick`); it replaces no run of the whole suite. The
changed files are those that differ from the last commit, or if none do, those of the last commit.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# folders whose tests have other names
_TESTED_IN = {"kernels": ("ops", "backend"), "csrc": ("ops", "backend"), "docs": ("project",)}
_PATIENCE = 20.0  # seconds for git
_began = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seconds",
        type=float,
        help="the first case of each test, near the changed files first, for so many seconds",
    )


def changed() -> list[PurePosixPath]:
    """The files that differ from the last commit, or else those of it; none without git."""
    for command in (
        ["status", "--porcelain", "-uall", "--no-renames"],
        ["show", "--name-only", "--format="],
    ):
        try:
            done = subprocess.run(
                ["git", *command], cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode:
            return []
        lines = done.stdout.splitlines()
        found = [line[3:] if command[0] == "status" else line for line in lines if line]
        if found:
            return [PurePosixPath(name.strip('"')) for name in found]
    return []


def nearness(test: PurePosixPath, files: Iterable[PurePosixPath]) -> int:
    """How near a file of tests is to changed files: itself 100, else folders in common.

    test: relative to the root, like the files.
    """
    best = 0
    for file in files:
        if file == test:
            return 100
        folders = _TESTED_IN.get(file.parts[0])
        places = [(name,) for name in folders] if folders else [(*file.parent.parts[1:], file.stem)]
        for place in places:
            here = (*test.parent.parts[1:], test.stem.removeprefix("test_"))
            common = next(
                (i for i, (a, b) in enumerate(zip(place, here, strict=False)) if a != b),
                min(len(place), len(here)),
            )
            best = max(best, common)
    return best


def first_cases(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """(the first case of each test in the order of the items, the other cases)."""
    seen: set[str] = set()
    first: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        name = item.nodeid.split("[")[0]
        (others if name in seen else first).append(item)
        seen.add(name)
    return first, others


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the first case of each test, in the order of nearness, if --seconds is given."""
    if config.getoption("--seconds") is None:
        return
    first, others = first_cases(items)
    files = changed()
    near: dict[Any, int] = {}
    for item in first:
        if item.path not in near:
            near[item.path] = nearness(PurePosixPath(item.path.relative_to(ROOT)), files)
    items[:] = sorted(first, key=lambda item: -near[item.path])
    config.hook.pytest_deselected(items=others)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Leaves out what begins after the time."""
    seconds = item.config.getoption("--seconds")
    return True if seconds is not None and time.monotonic() - _began > seconds else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    seconds = config.getoption("--seconds")
    if seconds is not None:
        terminalreporter.write_line(
            "The first case of each test, those near the changed files first; what would have begun"
            f" after {seconds:g} s did not run. `make test` runs everything."
        )
