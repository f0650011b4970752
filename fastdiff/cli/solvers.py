"""`fastdiff solvers`: lists every solver with its order, network calls, options and paper."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..solvers import SOLVERS
from .output import say, say_json


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "solvers", help="list the solvers: order, calls per step, options, paper"
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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
            }
            for s in SOLVERS.values()
        ]
        say_json(rows, 2)
        return 0
    cells = [("solver", "order", "noise", "calls", "options", "paper")]
    for s in SOLVERS.values():
        options = " ".join(f"{name}={value}" for name, value in s.options.items())
        cells.append(
            (
                s.name,
                str(s.order),
                "yes" if s.stochastic else "no",
                str(s.calls),
                options or "-",
                s.paper,
            )
        )
    widths = [max(len(c[i]) for c in cells) for i in range(5)]
    for cell in cells:
        say("  ".join([*(text.ljust(w) for text, w in zip(cell, widths, strict=False)), cell[5]]))
    return 0
