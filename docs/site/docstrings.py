"""Docstrings of this project as reStructuredText, before Sphinx reads their sections.

They are plain English with `code`, lists, and formulas indented by themselves; no other sign is
markup. Nothing here knows a docstring by name: a rule holds for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ITEM = re.compile(r"\s*[-*] ")
_SECTION = re.compile(r"(Args|Arguments|Attributes|Raises|Returns|Results|Yields):")
_ENTRY = re.compile(r"\w[\w, *…-]*: ")


def as_markup(lines: list[str]) -> list[str]:
    """Returns a docstring's lines as reStructuredText that Sphinx's napoleon can read."""
    return list(_literal(_listed(_named_results(_joined_names(lines)))))


def _joined_names(lines: list[str]) -> list[str]:
    """Joins names of arguments that are continued on the next line: `a, b,` and `c: what`."""
    made: list[str] = []
    inside = False
    for line in lines:
        inside = _SECTION.fullmatch(line) is not None or (inside and line[:1] in ("", " "))
        before = made[-1] if made else ""
        names = re.fullmatch(r"\s+(\w+, )*\w+,", before)
        if inside and names and _indent(line) > _indent(before):
            made[-1] = f"{before} {line.strip()}"
        else:
            made.append(line)
    return made


def _named_results(lines: list[str]) -> list[str]:
    """Makes a section `Results` of results that have names of their own."""
    made = list(lines)
    for start, line in enumerate(lines):
        if line not in ("Returns:", "Yields:"):
            continue
        end = start + 1
        while end < len(lines) and (not lines[end] or lines[end][0] == " "):
            end += 1
        first = _indent(lines[start + 1]) if start + 1 < end else 0
        heads = [i for i in range(start + 1, end) if lines[i] and _indent(lines[i]) == first]
        if len(heads) > 1 and all(_ENTRY.match(lines[i].strip()) for i in heads):
            made[start] = "Results:"
    return made


def _listed(lines: list[str]) -> Iterator[str]:
    """Puts an empty line before each list that follows a sentence without one."""
    within = False
    for i, line in enumerate(lines):
        item = _ITEM.match(line) is not None
        before = lines[i - 1] if i else ""
        if item and not within and before.strip() and not _SECTION.fullmatch(before):
            yield ""
        within = item or (within and (not line or line[:1] == " "))
        yield line


def _literal(lines: Iterator[str]) -> Iterator[str]:
    """Marks formulas and code, which are blocks by themselves and indented, as literal."""
    text = list(lines)
    margin: int | None = None  # of the paragraph before a literal block
    for i, line in enumerate(text):
        if margin is not None and line.strip() and _indent(line) <= margin:
            margin = None
        if margin is not None or not line.strip():
            yield line
            continue
        yield _escaped(line)
        after = text[i + 1 : i + 3]
        if len(after) == 2 and not after[0].strip() and after[1].strip():
            # the lines of a list's item are indented by its bullet
            here = _indent(line) + (2 if _ITEM.match(line) else 0)
            if _indent(after[1]) > here and not _ITEM.match(after[1]):
                margin = _indent(line)
                yield from ("", " " * here + "::")


def _escaped(line: str) -> str:
    """Returns a line in which `code` is code and every other sign is itself."""
    bullet = _ITEM.match(line)
    begin = bullet[0] if bullet else ""
    parts = re.split(r"`([^`]+)`", line[len(begin) :])
    made = begin
    for i, part in enumerate(parts):
        if i % 2 == 0:
            made += re.sub(r"([\\*|`]|(?<=\w)_(?!\w))", r"\\\1", part)
        else:  # a name is a link where it is public; other code is literal
            made += f"`{part}`" if re.fullmatch(r"[A-Za-z_][\w.]*", part) else f"``{part}``"
            made += "\\ " if re.match(r"\w", parts[i + 1]) else ""
    return made


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
