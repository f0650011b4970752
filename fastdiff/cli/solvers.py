"""`fastdiff solvers`: every solver with its order, network calls, options and paper."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..solvers import SOLVERS


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser("solvers", help="list the solvers: order, calls a step, options, paper")
    parser.add_argument("--json", action="store_true", help="the list as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rows = [
        {
            "solver": s.name,
            "order": s.order,
            "noise": s.stochastic,
            "calls": s.calls,
            "options": s.options,
            "paper": s.paper,
        }
        for s in SOLVERS.values()
    ]
    if args.json:
        print(json.dumps(rows, indent=2, default=str))
        return 0
    cells = [("solver", "order", "noise", "calls", "options", "paper")]
    for row in rows:
        options = " ".join(f"{name}={value}" for name, value in row["options"].items())
        noise = "yes" if row["noise"] else "no"
        cells.append((row["solver"], str(row["order"]), noise, str(row["calls"]), options or "-", row["paper"]))
    widths = [max(len(c[i]) for c in cells) for i in range(5)]
    for cell in cells:
        print("  ".join([*(text.ljust(w) for text, w in zip(cell, widths, strict=False)), cell[5]]))
    return 0
