"""Values on the command line that several commands read: NAME=VALUE, shapes and ranges of ids.

All commands use one rule: `add_options` adds the flag, `parse_options` reads what it collected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..outside import NotJSON, parse_json
from .exit_status import UsageError

# the end of the help text of every NAME=VALUE flag
RULE = "VALUE: JSON, true, false, none, a list like 1,2, or a word; may be repeated"
_WORDS = {"true": True, "false": False, "none": None}


def add_quiet(parser: Any) -> None:
    """Adds --quiet, which every command has that shows its progress."""
    parser.add_argument(
        "--quiet", action="store_true", help="show no progress; results and errors are printed"
    )


def add_options(parser: Any, help: str, flag: str = "--option") -> None:
    """Adds a flag that collects NAME=VALUE texts for `parse_options`.

    Args:
        parser: an ArgumentParser or one of its groups.
        help: what the names are options of; the rule for values is appended.
    """
    parser.add_argument(
        flag, action="append", default=[], metavar="NAME=VALUE", help=f"{help}. {RULE}"
    )


def parse_options(
    texts: Iterable[str], flag: str = "--option", also: Collection[str] = ()
) -> dict[str, Any]:
    """Returns {name: value} of NAME=VALUE texts. Hyphens in a name become underscores.

    also: names that other flags of the command have set.

    Raises UsageError for a text without a name or "=", and for a name that is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"expected {flag} NAME=VALUE, got {text!r}.")
        name = name.replace("-", "_")
        if name in found:
            raise UsageError(f"expected {flag} {name} once, got it twice.")
        if name in also:
            raise UsageError(f"expected {name} once, got it by a flag and by {flag}.")
        found[name] = parse_value(value)
    return found


def parse_value(text: str) -> Any:
    """Returns the value that a text means, by the first of these that fits.

    JSON                      0.5, -3, true, null, [1, 2], {"a": 1}, "a word"
    true, false, none         in any case: True, FALSE, None
    a list where a comma is   1,2 is [1, 2]; 8,none is [8, None]. Quote a word that has commas as
                              JSON: '"a,b"'
    a word                    karras
    """
    try:
        return parse_json(text, finite=False)
    except NotJSON:
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        return [parse_value(part) for part in text.split(",")] if "," in text else text


def parse_shape(text: str) -> tuple[int, ...]:
    """Returns the sizes of --shape, such as 3,32,32."""
    if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", text):
        raise UsageError(f"expected --shape as numbers like 3,32,32, got {text!r}.")
    return tuple(map(int, text.split(",")))


def parse_id_range(text: str) -> tuple[int, int]:
    """Returns (first, last) of --ids A-B, both included, or of a single id."""
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise UsageError(f"expected --ids A-B with A <= B, both included, got {text!r}.")
    return int(match[1]), int(match[2] or match[1])


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Makes torch compute with --threads threads within the block; None changes nothing."""
    import torch

    before, count = torch.get_num_threads(), checked_threads(count)
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def checked_threads(count: int | None) -> int | None:
    """Returns --threads, checked; None where the flag is left out."""
    if count is not None and count < 1:
        raise UsageError(f"expected --threads >= 1, got {count}.")
    return count
