"""Tables of plain cells as HTML, which notebooks show for plans, schedules and jobs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def html_table(title: str, cells: Sequence[Sequence[str]]) -> str:
    """Returns a table with a title above it; the first row of cells is the head."""
    head, *rows = cells
    lines = ["<table>", f"<caption>{escape(title)}</caption>"]
    lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>")
    lines += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])
