"""What set-up installs, read from pyproject.toml (which packages) and constraints.txt (which
versions).
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

# packages whose import name is another
IMPORT_NAMES = {
    "pillow": "PIL",
    "pytest-benchmark": "pytest_benchmark",
    "pytest-xdist": "xdist",
    "ray[data]": "ray",
}
# what every torch of the last years needs, on any index
TORCH_NEEDS = [
    "filelock",
    "typing_extensions",
    "sympy",
    "networkx",
    "jinja2",
    "fsspec",
    "setuptools",
]
# a torch build pins its own triton, and TORCH may name any torch
_UNPINNED = ("torch", "triton")


def runtime(root: Path) -> list[str]:
    """Names of the package's own needs, torch left out."""
    return [name for name in map(_name, _project(root)["dependencies"]) if name != "torch"]


def extra(root: Path, name: str) -> list[str]:
    """Names of what an extra needs, with their own extras: ray[data]."""
    return [
        re.split(r"[^][\w.,-]", text)[0] for text in _project(root)["optional-dependencies"][name]
    ]


def floor(root: Path, name: str) -> tuple[int, ...]:
    """(2, 11) for torch>=2.11."""
    text = next(t for t in _project(root)["dependencies"] if _name(t) == name)
    return tuple(map(int, text.partition(">=")[2].split(".")))


def pin(root: Path, name: str) -> str:
    """The line of constraints.txt, `torch==2.13.0`."""
    return next(line for line in _pins(root) if _name(line) == name)


def constraints(root: Path) -> str:
    """The constraints that hold beside any torch."""
    return "\n".join(line for line in _pins(root) if _name(line) not in _UNPINNED) + "\n"


def digest(root: Path) -> str:
    """Changes when what is to be installed changes."""
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
