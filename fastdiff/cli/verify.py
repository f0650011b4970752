"""`fastdiff verify`: reads and checks a dataset."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..jobs.folder import Folder
from ..jobs.job import check_trust
from ..jobs.trajectory import check_saves
from ..jobs.verify import verify
from ..outside import shown
from .exit_status import UNSOUND, usage_errors
from .output import say, say_json
from .sample import add_trust_flag

SHOWN = 20


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="read and check a dataset",
        description=(
            "Read every file of a dataset, compare it with its hashes, and print the digest of the"
            " pixels. `fastdiff resume` repairs what is wrong."
        ),
        epilog=(
            "Exit status: 0 complete and right, 4 not, 3 another machine than the run's (with"
            " --recompute and --rollout)."
        ),
    )
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument(
        "--recompute",
        type=int,
        default=0,
        metavar="N",
        help="compute N random units again and compare them",
    )
    parser.add_argument(
        "--rollout",
        action="store_true",
        help=(
            "prove the trajectories that --save stored: every recorded row is executed again from"
            " its state, and x_T and noise are drawn again; without the network (no --trust for"
            " code) only what needs none is checked"
        ),
    )
    add_trust_flag(parser)
    parser.add_argument("--threads", type=int, help="files to read at a time (the number of CPUs)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with usage_errors():
        if args.recompute < 0 or (args.threads is not None and args.threads < 1):
            raise ValueError(
                f"expected --recompute >= 0 and --threads >= 1, got {args.recompute} and"
                f" {args.threads}."
            )
        folder = Folder(args.folder)
        if args.recompute:
            check_trust(folder.spec, args.trust, args.folder)
        if args.rollout:
            check_saves(folder.spec, folder.path)
    check = verify(folder, args.recompute, args.threads, trust=args.trust, rollout=args.rollout)
    if args.json:
        say_json({"fine": check.fine, **dataclasses.asdict(check)})
        return 0 if check.fine else UNSOUND
    for unit, what in list(check.bad.items())[:SHOWN]:
        say(f"unit {unit} is bad: {shown(what)}")
    for unit, what in list(check.failed.items())[:SHOWN]:
        say(f"unit {unit} failed: {shown(what)}")
    if check.missing:
        listed = ", ".join(map(str, check.missing[:SHOWN])) + (
            " …" if len(check.missing) > SHOWN else ""
        )
        say(f"{len(check.missing)} of {check.units} units have no record: {listed}")
    if check.conditions:
        say(f"the conditions file is bad: {shown(check.conditions)}")
    for name in check.foreign[:SHOWN]:
        say(f"{shown(name)} is not part of the dataset")
    if check.recomputed:
        say(f"computed again and compared: units {', '.join(map(str, check.recomputed))}")
    if check.transitions:
        say(f"executed again and compared: {check.transitions} transitions")
    if check.unproven:
        say(
            "steps were not executed again, only x_T, noise and log-probabilities were compared:"
            f" {shown(check.unproven)}"
        )
    say(f"{check.done} of {check.units} units, {check.images} samples, digest {check.digest}")
    if not check.fine:
        say(
            f"not complete: `fastdiff resume {shown(args.folder)}` computes the rest"
            + (" (--retry-failed)" * bool(check.failed))
        )
    return 0 if check.fine else UNSOUND
