"""Completion of command lines in a shell, by the library argcomplete (the extra `complete`).

The shell calls `fastdiff` with the line that was typed in environment variables, and argcomplete
reads the parser for what may follow. It is imported only then.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

from .exit_status import UsageError

ASKED = "_ARGCOMPLETE"  # is set where a shell asks for completions
LINE, POINT = "COMP_LINE", "COMP_POINT"  # what was typed, and the bytes of it before the cursor


def is_asked(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a shell has called this process for completions."""
    return ASKED in environment


def command_of(commands: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> str:
    """Returns the command that the typed line names, "" for none or one that is still typed."""
    line = environment.get(LINE, "")
    words = line[: int(environment.get(POINT) or len(line))].split(" ")
    known = [word for word in words[:-1] if word in commands]
    return known[0] if known else ""


def complete(parser: Any) -> None:
    """Prints what may follow the typed line, and ends the process.

    Raises UsageError without argcomplete.
    """
    try:
        import argcomplete
    except ImportError:
        raise UsageError(
            "expected argcomplete to complete a command line, got none installed. Install"
            " fastdiff-engine[complete] where fastdiff runs."
        ) from None
    for action in actions_of(parser):
        for flag in action.option_strings:
            if flag in COMPLETERS and action.choices is None:
                action.completer = COMPLETERS[flag]
    argcomplete.autocomplete(parser)


def actions_of(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yields the actions of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from actions_of(sub)


def solver_names(**_: Any) -> list[str]:
    """Returns what --solver may be."""
    from ..solvers import SOLVERS

    return list(SOLVERS)


def model_names(prefix: str = "", **_: Any) -> list[str]:
    """Returns what --model may be: the shipped models, and the folders that are typed so far."""
    from ..pretrained import shipped

    parent = os.path.dirname(prefix)
    try:
        with os.scandir(parent or ".") as entries:
            folders = [os.path.join(parent, e.name) + "/" for e in entries if e.is_dir()]
    except OSError:
        folders = []
    return [*shipped(), *(f for f in sorted(folders) if f.startswith(prefix))]


# what completes the values of a flag that has no choices, in every command
COMPLETERS = {"--solver": solver_names, "--model": model_names}
