"""Old import paths: a module that moved stays importable under its former name.

`import fastdiff.score` gives the module `fastdiff.theory.score` itself, not a copy, with a
DeprecationWarning that names the new path; so does every module inside it, and a pickle that names
one.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

# old path -> new path; the modules inside an old path moved with it
MOVED = {
    "fastdiff.adaptive": "fastdiff.sampling.adaptive",
    "fastdiff.checkpoint": "fastdiff.pretrained.files",
    "fastdiff.evaluation": "fastdiff.theory.evaluation",
    "fastdiff.guidance": "fastdiff.sampling.guidance",
    "fastdiff.information": "fastdiff.theory.information",
    "fastdiff.likelihood": "fastdiff.theory.likelihood",
    "fastdiff.native": "fastdiff.backend.library",
    "fastdiff.score": "fastdiff.theory.score",
    "fastdiff.systems": "fastdiff.theory.systems",
    "fastdiff.variational": "fastdiff.theory.variational",
}


def new_path(name: str) -> str | None:
    """Returns where the module of an old path is now, or None if the path is not an old one."""
    for old, new in MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds old paths. It comes first among the finders: the others would load a second copy."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = new_path(name)
        if new is None:
            return None
        warnings.warn(
            f"{name}: expected the path {new}, got its former name. Import {new}.",
            DeprecationWarning,
            stacklevel=2,  # frames of the import system are not counted
        )
        return importlib.machinery.ModuleSpec(name, _Loader(new))


class _Loader(importlib.abc.Loader):
    """Loads the module at a new path; it keeps its own name and spec."""

    def __init__(self, new: str):
        self.new = new

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has put the old path's here


def install() -> None:
    """Makes old paths importable in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
