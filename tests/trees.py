"""Copies of this source tree, for tests that set up, build or install one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# what .gitignore lists, and .git: a copy is like a tarball
LEFT_OUT = (
    ".git",
    ".venv",
    ".setup",
    "build",
    "dist",
    "lib",
    "out",
    ".benchmarks",
    ".hypothesis",
    "__pycache__",
)


def copy_tree(to: Path) -> Path:
    """Copies the source tree, without what builds and tools made, and returns the copy's path."""
    ignore = shutil.ignore_patterns(*LEFT_OUT, "*.egg-info", ".*_cache", "*.pyc")
    return Path(shutil.copytree(ROOT, to, ignore=ignore))


def files(root: Path = ROOT) -> list[Path]:
    """Returns the files of the tree, without those that builds and tools make."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [
            d for d in folders if d not in LEFT_OUT and not d.endswith((".egg-info", "_cache"))
        ]
        found += [Path(folder) / name for name in names]
    return found


def run(
    command: Sequence[str | Path], cwd: Path, **settings: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs a command in an environment without the settings of an outer make.

    settings: changed variables; None removes one.
    """
    outer = (
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "MAKEOVERRIDES",
        "VENV",
        "PYTHON",
        "TORCH",
        "PYTHONPATH",
    )
    changed = {**dict.fromkeys(outer), **settings}
    env = {
        k: v for k, v in os.environ.items() if k not in changed and not k.startswith("FASTDIFF_")
    }
    env |= {k: v for k, v in changed.items() if v is not None}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
