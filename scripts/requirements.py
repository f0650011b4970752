"""What set-up installs: the packages of pyproject.toml in the versions of constraints.txt."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

# packages with another import name
IMPORT_NAMES = {
    "myst-parser": "myst_parser",
    "sphinx-argparse": "sphinxarg",
    "pillow": "PIL",
    "pytest-benchmark": "pytest_benchmark",
    "pytest-xdist": "xdist",
    "ray[data]": "ray",
}
# the dependencies of every recent torch, on any index
TORCH_NEEDS = [
    "filelock",
    "typing_extensions",
    "sympy",
    "networkx",
    "jinja2",
    "fsspec",
    "setuptools",
]
# a torch build pins its own triton, and TORCH may select any torch
_UNPINNED = ("torch", "triton")


def runtime(root: Path) -> list[str]:
    """Returns the names of the package's dependencies, except torch."""
    return [name for name in map(_name, _project(root)["dependencies"]) if name != "torch"]


def extra(root: Path, name: str) -> list[str]:
    """Returns the names of an extra's dependencies, with their own extras, such as ray[data]."""
    return [
        re.split(r"[^][\w.,-]", text)[0] for text in _project(root)["optional-dependencies"][name]
    ]


def floor(root: Path, name: str) -> tuple[int, ...]:
    """Returns the lowest version of a dependency: (2, 11) for torch>=2.11."""
    text = next(t for t in _project(root)["dependencies"] if _name(t) == name)
    return tuple(map(int, text.partition(">=")[2].split(".")))


def pin(root: Path, name: str) -> str:
    """Returns a package's line of constraints.txt, such as `torch==2.13.0`."""
    return next(line for line in _pins(root) if _name(line) == name)


def constraints(root: Path) -> str:
    """Returns the constraints that are compatible with any torch."""
    return "\n".join(line for line in _pins(root) if _name(line) not in _UNPINNED) + "\n"


def digest(root: Path) -> str:
    """Returns a hash of what is to be installed."""
    both = (root / "pyproject.toml").read_bytes() + (root / "constraints.txt").read_bytes()
    return hashlib.sha256(both).hexdigest()


def _project(root: Path) -> dict[str, Any]:
    return dict(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def _pins(root: Path) -> list[str]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0]
