"""The tables of solvers and grids, from their registries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from fastdiff.solvers import SOLVERS
from fastdiff.solvers.grids import LEVELS, POINTS, TIMESTEPS


class Solvers(SphinxDirective):
    """`.. solvers::` lists the solvers."""

    def run(self) -> Sequence[nodes.Node]:
        heads = ("solver", "order", "noise", "calls a step", "options", "published in")
        rows = [
            (
                _code(solver.name),
                _text(solver.order),
                _text("yes" if solver.stochastic else "no"),
                _text(solver.calls),
                _options(solver.options),
                _text(solver.paper),
            )
            for solver in SOLVERS.values()
        ]
        return [_table(heads, (10, 5, 5, 5, 30, 45), rows)]


class Grids(SphinxDirective):
    """`.. grids::` lists the grids, with the first sentence of their docstrings."""

    def run(self) -> Sequence[nodes.Node]:
        kinds: dict[str, Mapping[str, Any]] = {
            "timesteps": TIMESTEPS,
            "noise levels": LEVELS,
            "both": POINTS,
        }
        rows = [
            (_code(name), _text(kind), _text(_first_sentence(function)))
            for kind, table in kinds.items()
            for name, function in table.items()
        ]
        return [_table(("grid", "of", "what it is"), (20, 15, 65), rows)]


def _table(
    heads: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[nodes.paragraph]]
) -> nodes.table:
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(map(_text, heads)))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group)


def _row(cells: Iterable[nodes.paragraph]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def _text(value: Any) -> nodes.paragraph:
    return nodes.paragraph("", str(value))


def _code(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.literal(text, text))


def _options(options: dict[str, Any]) -> nodes.paragraph:
    cell = nodes.paragraph()
    for name, value in options.items():
        shown = "∞" if value == math.inf else value
        cell += [*([nodes.Text(", ")] if len(cell) else []), nodes.literal("", f"{name}={shown}")]
    return cell


def _first_sentence(thing: Any) -> str:
    text = " ".join((thing.__doc__ or "").split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".") + "."
