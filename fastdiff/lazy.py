"""Names of a package that load on first use, so that an import costs only what it needs.

A package's `__init__` has, beside the imports that type checkers read:

    __getattr__, __dir__ = lazy.on_first_use(__name__, {"Job": "job"})
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def on_first_use(
    package: str, where: Mapping[str, str], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        where: names, and the modules in it that define them.
        modules: its modules that are attributes without an import statement of their own.

    The first function raises AttributeError for other names.
    """
    own = frozenset(modules)

    def get(name: str) -> Any:
        if name in where:
            value = getattr(importlib.import_module(f".{where[name]}", package), name)
            setattr(sys.modules[package], name, value)
            return value
        if name in own:
            return importlib.import_module(f".{name}", package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where, *own})

    return get, listed
