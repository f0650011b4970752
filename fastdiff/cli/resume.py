"""`fastdiff resume`: continues a dataset exactly as it was started."""

from __future__ import annotations

import argparse
from typing import Any

from ..jobs.folder import Folder
from ..jobs.job import Job
from ..jobs.verify import verify
from ..outside import shown
from .exit_status import usage_errors
from .output import say
from .sample import add_trust_flag, add_worker_flags, device_of, work, worker_of


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "resume",
        help="continue a dataset as it was started",
        description=(
            "Continue a dataset as it was started, and repair it: units that are missing, have"
            " missing or truncated files, or that `fastdiff verify` found wrong are computed again."
            " Complete units are not touched."
        ),
        epilog="The exit status is that of `fastdiff sample`.",
    )
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--verify", action="store_true", help="read and check every file first")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (the device of the run)")
    add_worker_flags(parser)
    add_trust_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with usage_errors():
        placement = worker_of(args)
        folder = Folder(args.folder)
        device = device_of(args.device or folder.spec.machine["device"], placement)
        job = Job.open(
            folder.spec,
            conditions=folder.conditions,
            device=device,
            where=args.folder,
            trust=args.trust,
        )
    if args.verify:
        for unit, what in verify(folder).bad.items():
            say(f"unit {unit}: {shown(what)}; it is computed again")
    return work(folder, job, args, placement)
