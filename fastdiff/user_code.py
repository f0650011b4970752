"""The user's own code, named as `package.module:function`: found, imported, never run unasked.

A name of code that a file holds is text until somebody trusts it. `origin` says where the code
would come from without importing anything; `import_function` imports it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_name(text: Any) -> bool:
    """Returns whether a value is the name of code: `package.module:function`."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def import_function(name: str, where: str, what: str) -> Callable[..., Any]:
    """Imports the module and returns the function or class of a name.

    The current directory is searched first, as with `python -m`.

    Args:
        name: `package.module:function`.
        where: that error messages begin with.
        what: that the function makes, for messages: "model".

    Raises ImportError and TypeError in one sentence.
    """
    module, _, path = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        with never_exits(f"the import of {module}", where):
            found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        own = module == missing or module.startswith(f"{missing}.")
        got = (
            f"none from {here}"
            if own
            else f"one that needs the module {missing!r}, which is not installed"
        )
        raise ImportError(
            f"{where}: expected a module {module!r} for the {what} {name}, got {got}."
        ) from None
    except Exception as error:
        raise ImportError(
            f"{where}: expected to import {module!r} for the {what} {name}, got"
            f" {type(error).__name__}: {error}."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ImportError(
                f"{where}: expected {part!r} in {module} for the {what} {name}, got no such name."
            )
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(
            f"{where}: expected {name} to be a function that returns the {what}, got"
            f" {type(found).__name__}."
        )
    return found


def call(function: Callable[..., Any], arguments: Mapping[str, Any], name: str, where: str) -> Any:
    """Returns function(**arguments).

    Raises TypeError in one sentence for arguments that it does not take, RuntimeError for an exit.
    """
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise TypeError(
            f"{where}: expected {name} to take the arguments {sorted(arguments)}, got a function"
            f" for others ({error})."
        ) from None
    except ValueError:
        pass  # functions without a signature are called as they are
    with never_exits(f"{name}()", where):
        return function(**arguments)


def takes(function: Callable[..., Any]) -> frozenset[str]:
    """Returns the names of a function's arguments that can be passed by keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in parameters if p.kind in kinds)


@contextmanager
def never_exits(what: str, where: str) -> Iterator[None]:
    """Turns an exit of the user's code into RuntimeError: a command that ends with status 0 without
    having done its work would look like one that has.

    what: that runs in the block; where: that the message begins with.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(
            f"{where}: expected {what} to return, got an exit with the status {error.code!r}."
        ) from error


def origin(name: str) -> str:
    """Returns the file that `import_function` would import for a name, or words where there is
    none.

    Nothing is imported, not even the packages that the module is in.
    """
    module = name.partition(":")[0]
    here, found = os.getcwd(), None
    path: Sequence[str] | None = (
        sys.path if here in sys.path or "" in sys.path else [here, *sys.path]
    )
    parts = module.split(".")
    for number in range(len(parts)):
        full = ".".join(parts[: number + 1])
        if full in sys.modules and number + 1 == len(parts):
            return str(getattr(sys.modules[full], "__file__", None) or "memory")
        found = PathFinder.find_spec(full, path)
        if found is None:
            break
        path = found.submodule_search_locations
        if path is None and number + 1 < len(parts):
            return "nowhere"
    return "nowhere" if found is None else str(found.origin or f"the folder of {module}")


def source_file(function: Any, name: str) -> Path | None:
    """Returns the file with the source of a function, None where it has none."""
    module = sys.modules.get(
        getattr(inspect.unwrap(function), "__module__", None) or name.partition(":")[0]
    )
    file = getattr(module, "__file__", None)
    return Path(file) if file and Path(file).is_file() else None
