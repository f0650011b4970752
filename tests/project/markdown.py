"""Reads the parts of a Markdown page that tests compare with the code."""

from __future__ import annotations

import re
from pathlib import Path

CODE = re.compile(r"`([^`\n]+)`")


def section(page: Path, title: str) -> str:
    """Returns the text under a heading, up to the next heading of the same or a higher level."""
    text = page.read_text(encoding="utf-8")
    heading = re.search(rf"^(#+) {re.escape(title)}$", text, flags=re.M)
    assert heading, f"{page.name} has no section {title!r}"
    rest = text[heading.end() :]
    end = re.search(rf"^#{{1,{len(heading[1])}}} ", rest, flags=re.M)
    return rest[: end.start()] if end else rest


def tables(text: str) -> list[list[list[str]]]:
    """Returns the tables of a text: rows of cells, without the headings."""
    found: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            found.append(rows[2:])
            rows = []
    return found


def without_blocks(text: str) -> str:
    """Returns the text without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
