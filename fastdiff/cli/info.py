"""`fastdiff info`: reports the progress of a dataset, during a run or after it."""

from __future__ import annotations

import argparse
import dataclasses
from datetime import timedelta
from typing import Any

from ..jobs.folder import Folder
from ..jobs.info import Info, info
from ..jobs.spec import RunSpec
from ..outside import shown
from .exit_status import usage_errors
from .output import say, say_json

SHOWN = 10


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "info",
        help="report the progress of a dataset",
        description=(
            "Report what is done, missing, failed and corrupt in a dataset, its workers, and when"
            " it will be done, on any machine that can read the folder. Samples are not read:"
            " `fastdiff verify` does that."
        ),
    )
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with usage_errors():
        folder = Folder(args.folder)
    found = info(folder)
    if args.json:
        say_json(
            {
                "complete": found.complete,
                "spec": folder.spec.hash,
                "recipe": folder.spec.recipe,
                **dataclasses.asdict(found),
            }
        )
    else:
        say(describe(folder, found))
    return 0


def describe(folder: Folder, found: Info) -> str:
    """Returns the report as text."""
    spec = folder.spec
    lines = [
        (
            f"{shown(folder.path)}: ids {spec.ids[0]}-{spec.ids[1]} of seed {spec.seed},"
            f" {shown(spec.model['name'])}, {_drawn(spec)}"
        ),
        (
            f"  {found.done} of {found.units} units done ({found.images} of {found.samples}"
            f" samples, {found.bytes / 2**20:.1f} MiB), {found.missing} missing,"
            f" {len(found.failed)} failed, {len(found.corrupt)} corrupt"
        ),
    ]
    for kind, some in (("failed", found.failed), ("corrupt", found.corrupt)):
        lines += [
            f"  unit {unit} {kind}: {shown(what)}" for unit, what in list(some.items())[:SHOWN]
        ]
    for name, worker in found.workers.items():
        lines.append(
            f"  {shown(name)}: {worker['images_per_second']} images/s, queue {worker['queue']},"
            f" {worker['resident_mib']} MiB, last heard of {worker['silent_s']:.0f} s ago"
        )
    if found.complete:
        lines.append("  complete")
    elif found.eta_s is not None:
        lines.append(
            f"  {found.images_per_second} images/s together, {timedelta(seconds=found.eta_s)} to go"
        )
    else:
        lines.append(f"  no worker is active: `fastdiff resume {shown(folder.path)}`")
    if found.unreadable:
        lines.append(f"  {found.unreadable} lines of log/ could not be read")
    return "\n".join(lines)


def _drawn(spec: RunSpec) -> str:
    """Returns what draws the samples, in words."""
    if spec.drawer == "sample":
        return "drawn by the model's own `sample`"
    plan = spec.plan.info
    steps = f"{shown(plan.get('solver'))} {shown(plan.get('steps'))} steps"
    return f"{steps}, guidance {spec.guidance_scale}"
