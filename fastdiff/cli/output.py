"""The output of the commands: everything that they print goes through here.

Names of files, classes and models, prompts, and texts of errors may come from someone else's
folder. Printed raw, a control sequence in one could clear the screen or forge lines, so control
characters are shown escaped (fastdiff.outside.shown).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ..nearest import nearest
from ..outside import shown

STDOUT = 1  # its file descriptor


def say(text: Any, *, error: bool = False, flush: bool = False) -> None:
    """Prints a text, of one or more lines, to stdout or to stderr.

    A text from outside that goes into it passes through `shown` first, which keeps it on its line.
    """
    file = sys.stderr if error else sys.stdout
    print(printable(shown(text, keep="\n"), file), file=file, flush=flush)


def say_json(value: Any, indent: int | None = 1) -> None:
    """Prints a value as JSON, in ASCII."""
    # json escapes all control characters except DEL
    print(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


def printable(text: str, file: Any) -> str:
    """Returns the text with escapes for what the encoding of a stream lacks."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def output_is_closed() -> bool:
    """Returns whether the reader of stdout is gone, as with `fastdiff solvers | head`.

    What Python flushes at its end then goes nowhere.
    """
    state = select.poll()
    state.register(STDOUT, select.POLLOUT)
    closed = any(event & select.POLLERR for _, event in state.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return closed


@contextmanager
def safe_warnings() -> Iterator[None]:
    """Shows control characters in the warnings of the block escaped."""
    before = warnings.formatwarning

    def formatted(*facts: Any, **more: Any) -> str:
        return shown(before(*facts, **more), keep="\n")

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


class Parser(argparse.ArgumentParser):
    """A parser whose messages, which quote the arguments, show control characters escaped."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += f".{nearest(value, map(str, action.choices or ()))}"
            raise

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses all arguments; an unknown flag is an error that suggests the nearest one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = self._flags(found)
            like = next((s for name in unknown if (s := nearest(_flag(name), known))), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{like}")
        return found

    def _flags(self, found: argparse.Namespace) -> list[str]:
        """Returns the flags of the parser and of the command that the arguments named."""
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(getattr(found, action.dest, None) or "")
                flags += chosen._flags(found) if isinstance(chosen, Parser) else []
        return flags

    def _print_message(self, message: str, file: Any = None) -> None:
        file = file or sys.stderr
        super()._print_message(printable(shown(message, keep="\n"), file), file)


def _flag(text: str) -> str:
    """Returns the flag of an argument, --steps of --steps=3; other arguments have none: ""."""
    return text.split("=")[0] if text.startswith("--") else ""
