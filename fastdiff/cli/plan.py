"""`fastdiff plan`: prints a solver's plan as formulas, as JSON, or draws it."""

from __future__ import annotations

import argparse
from typing import Any

from ..prediction import PREDICTION_TYPES
from ..schedule import FORMULAS, Schedule
from ..solvers import Plan, make_plan
from ..solvers.aliases import grid_name
from ..solvers.grids import SPACINGS
from .exit_status import usage_errors
from .options import add_options, parse_options
from .output import say, say_json

SCHEDULE_OPTION = "--schedule-option"


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser("plan", help="print a solver's plan: the formula of each row")
    parser.add_argument("--solver", default="ddim", help="see `fastdiff solvers`")
    parser.add_argument("--steps", type=int, default=10, help="of the solver (10)")
    parser.add_argument("--schedule", choices=FORMULAS, default="linear")
    add_options(parser, "an option of the schedule, such as shift=3", SCHEDULE_OPTION)
    parser.add_argument(
        "--zero-snr", action="store_true", help="rescale the schedule to end in pure noise"
    )
    parser.add_argument("--timesteps", type=int, default=1000, help="the schedule's length T")
    parser.add_argument("--spacing", choices=SPACINGS, type=grid_name, default="trailing")
    parser.add_argument(
        "--prediction",
        choices=PREDICTION_TYPES,
        help="what the network predicts (epsilon; flow for a flow schedule, v with --zero-snr)",
    )
    parser.add_argument("--clip", type=float, default=None, help="clamp x0 to [-CLIP, CLIP]")
    add_options(parser, "an option of the solver, such as eta=0.5")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="also draw levels and coefficients (needs matplotlib)"
    )
    parser.add_argument("--json", action="store_true", help="print columns and table as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with usage_errors():
        plan = _plan(args)
    if args.json:
        say_json({"hash": plan.hash, "columns": plan.columns, "table": plan.table.tolist()}, None)
    else:
        say(plan)
    if args.plot:
        from .plan_figure import plot

        plot(plan, args.plot)
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    schedule: Schedule = _schedule(
        args.schedule, args.timesteps, parse_options(args.schedule_option, SCHEDULE_OPTION)
    )
    if args.zero_snr:
        schedule = schedule.rescale_zero_terminal_snr()
    # epsilon does not determine x0 at pure noise, where these two start
    default = "flow" if schedule.space == "flow" else "v" if args.zero_snr else "epsilon"
    settings = {
        "solver": args.solver,
        "steps": args.steps,
        "prediction_type": args.prediction or default,
        "clip_range": args.clip,
        "timestep_spacing": args.spacing,
    }
    if args.plot:
        from .figures import check_target

        check_target(args.plot)
    return make_plan(schedule, **settings, **parse_options(args.option, also=settings))


def _schedule(name: str, size: int, settings: dict[str, Any]) -> Schedule:
    try:
        schedule: Schedule = getattr(Schedule, name)(size, **settings)
    except TypeError:
        raise ValueError(
            f"expected options of the schedule {name!r}, got {sorted(settings)}."
        ) from None
    return schedule
