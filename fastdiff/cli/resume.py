"""`fastdiff resume`: goes on with a dataset exactly as it was begun."""

from __future__ import annotations

import argparse
from typing import Any

from ..jobs.folder import Folder
from ..jobs.job import Job
from ..jobs.verify import verify
from .exit_status import usage_errors
from .sample import add_worker_flags, device_of, work, worker_of


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "resume",
        help="go on with a dataset as it was begun",
        description=(
            "Go on with a dataset as it was begun, and mend it: units that are missing, whose files"
            " are missing or cut short, or that `fastdiff verify` found wrong are made again. What"
            " is whole is not touched."
        ),
        epilog="Exit status as of `fastdiff sample`.",
    )
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--verify", action="store_true", help="read and check every file first")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (the run's)")
    add_worker_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with usage_errors():
        place = worker_of(args)
        folder = Folder(args.folder)
        device = device_of(args.device or folder.spec.machine["device"], place)
        job = Job.open(folder.spec, conditions=folder.conditions, device=device, where=args.folder)
    if args.verify:
        for unit, what in verify(folder).bad.items():
            print(f"unit {unit}: {what}; it is made again")
    return work(folder, job, args, place)
