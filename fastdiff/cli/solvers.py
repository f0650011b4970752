"""`fastdiff solvers`: lists every solver with its order, network calls, options and paper, and
which one to take; or the names of other programs with what they stand for here.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..solvers import SOLVERS
from ..solvers.advice import ADVICE, Advice, advised
from ..solvers.aliases import PROGRAMS, Names
from .output import say, say_json


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "solvers", help="list the solvers: order, calls per step, options, paper; which to take"
    )
    parser.add_argument(
        "--names",
        choices=PROGRAMS,
        help="list this program's samplers and schedulers, and what they are here",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.names is not None:
        return _names(PROGRAMS[args.names], args.json)
    if args.json:
        rows = [
            {
                "solver": s.name,
                "order": s.order,
                "noise": s.stochastic,
                "calls": s.calls,
                # JSON has no infinity
                "options": {
                    name: "inf" if value == math.inf else value for name, value in s.options.items()
                },
                "paper": s.paper,
                "recommended": advised(s.name),
            }
            for s in SOLVERS.values()
        ]
        say_json(rows, 2)
        return 0
    cells = [("solver", "order", "noise", "calls", "options", "paper")]
    for s in SOLVERS.values():
        cells.append(
            (
                s.name,
                str(s.order),
                "yes" if s.stochastic else "no",
                str(s.calls),
                _text(s.options),
                s.paper,
            )
        )
    _table(cells)
    say("")
    advice = [("recommended for", "solver", "grid", "calls", "Sampler(...)")]
    for a in ADVICE:
        calls = f"{a.calls[0]} to {a.calls[1]}"
        advice.append((a.when, a.solver, a.spacing, calls, _command(a)))
    _table(advice)
    return 0


def _command(advice: Advice) -> str:
    """Returns the arguments of `Sampler` that follow the advice."""
    return f'solver="{advice.solver}", timestep_spacing="{advice.spacing}"'


def _names(names: Names, as_json: bool) -> int:
    """Prints the samplers, the schedulers and the rest of a program's names."""
    if as_json:
        say_json(
            {
                "samplers": {
                    name: {**alias._asdict(), "options": dict(alias.options)}
                    for name, alias in names.samplers.items()
                },
                "schedulers": {
                    name: {"spacing": grid, "note": note}
                    for name, (grid, note) in names.schedulers.items()
                },
                "others": dict(names.others),
            }
        )
        return 0
    cells = [("sampler", "solver", "options", "grid", "note")]
    cells += [
        (name, a.solver, _text(a.options), a.spacing or "-", a.note)
        for name, a in names.samplers.items()
    ]
    _table(cells)
    say("")
    _table([("scheduler", "grid", "note"), *((k, *v) for k, v in names.schedulers.items())])
    say("")
    _table([("not here", "instead"), *names.others.items()])
    return 0


def _text(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()) or "-"


def _table(cells: Sequence[Sequence[str]]) -> None:
    """Prints rows with aligned columns; the last column is as long as it is."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)]
    for row in cells:
        texts = [text.ljust(w) for text, w in zip(row, widths, strict=False)]
        say("  ".join([*texts, row[-1]]).rstrip())
