"""`fastdiff plan`: the table a solver becomes, as formulas a person can read, or as a picture."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..prediction import PREDICTION_TYPES
from ..schedule import FORMULAS, Schedule
from ..solvers import make_plan
from ..solvers.grids import SPACINGS


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser("plan", help="print a solver's plan: one row a network call")
    parser.add_argument("--solver", default="ddim", help="see `fastdiff solvers`")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--schedule", choices=FORMULAS, default="linear")
    parser.add_argument(
        "--schedule-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the schedule, e.g. shift=3",
    )
    parser.add_argument(
        "--zero-snr", action="store_true", help="rescale the schedule to end in pure noise"
    )
    parser.add_argument("--timesteps", type=int, default=1000, help="the schedule's length T")
    parser.add_argument("--spacing", choices=SPACINGS, default="trailing")
    parser.add_argument(
        "--prediction", choices=PREDICTION_TYPES, help="default: epsilon; v or flow from pure noise"
    )
    parser.add_argument("--clip", type=float, default=None, help="hold x0 in [-CLIP, CLIP]")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the solver, e.g. eta=0.5",
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw grid and coefficients too (needs matplotlib)"
    )
    parser.add_argument("--json", action="store_true", help="columns and table as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    schedule: Schedule = _made(
        args.schedule, args.timesteps, dict(_option(text) for text in args.schedule_option)
    )
    if args.zero_snr:
        schedule = schedule.rescale_zero_terminal_snr()
    # epsilon says nothing at the pure noise that these two begin in
    default = "flow" if schedule.space == "flow" else "v" if args.zero_snr else "epsilon"
    plan = make_plan(
        schedule,
        solver=args.solver,
        steps=args.steps,
        prediction_type=args.prediction or default,
        clip_range=args.clip,
        timestep_spacing=args.spacing,
        **dict(_option(text) for text in args.option),
    )
    if args.json:
        print(
            json.dumps({"hash": plan.hash, "columns": plan.columns, "table": plan.table.tolist()})
        )
    else:
        print(plan)
    if args.plot:
        from .plot import plot

        plot(plan, args.plot)
    return 0


def _made(name: str, size: int, options: dict[str, Any]) -> Schedule:
    try:
        schedule: Schedule = getattr(Schedule, name)(size, **options)
    except TypeError:
        raise ValueError(
            f"expected options of the schedule {name!r}, got {sorted(options)}."
        ) from None
    return schedule


def _option(text: str) -> tuple[str, Any]:
    """eta=0.5 as a name and the value it means: a number, true, false or a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected --option NAME=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
