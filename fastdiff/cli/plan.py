"""`fastdiff plan`: the table a solver becomes, as formulas a person can read."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..prediction import PREDICTION_TYPES
from ..schedule import Schedule
from ..solvers import make_plan
from ..solvers.grids import SPACINGS

SCHEDULES = ("linear", "scaled_linear", "cosine")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser("plan", help="print a solver's plan: one row a network call")
    parser.add_argument("--solver", default="ddim", help="see `fastdiff solvers`")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--schedule", choices=SCHEDULES, default="linear")
    parser.add_argument("--timesteps", type=int, default=1000, help="the schedule's length T")
    parser.add_argument("--spacing", choices=SPACINGS, default="trailing")
    parser.add_argument("--prediction", choices=PREDICTION_TYPES, default="epsilon")
    parser.add_argument("--clip", type=float, default=None, help="hold x0 in [-CLIP, CLIP]")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the solver, e.g. eta=0.5"
    )
    parser.add_argument("--json", action="store_true", help="columns and table as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    plan = make_plan(
        getattr(Schedule, args.schedule)(args.timesteps),
        solver=args.solver,
        steps=args.steps,
        prediction_type=args.prediction,
        clip_range=args.clip,
        timestep_spacing=args.spacing,
        **dict(_option(text) for text in args.option),
    )
    if args.json:
        print(json.dumps({"hash": plan.hash, "columns": plan.columns, "table": plan.table.tolist()}))
    else:
        print(plan)
    return 0


def _option(text: str) -> tuple[str, Any]:
    """eta=0.5 as a name and the value it means: a number, true, false or a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected --option NAME=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
