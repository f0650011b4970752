"""`fastdiff merge`: joins datasets of one run spec."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..jobs.folder import Folder
from ..jobs.merging import merge
from ..jobs.preview import class_names, write_grid
from ..jobs.samples import DatasetError
from ..outside import shown
from .exit_status import AGAIN, UNSOUND, usage_errors
from .options import add_quiet
from .output import say, say_json
from .sample import as_json, stopping


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "merge",
        help="join datasets of one run spec into one",
        description=(
            "Join datasets whose run specs differ in their ids alone into the new dataset OUT. It"
            " is the dataset that one run with all the ids makes. Nothing is computed, and every"
            " file is compared with its record. Samples that are in several datasets must be equal."
            " After a kill, the same command continues."
        ),
        epilog=(
            "Exit status: 0 done, 2 wrong arguments, 3 datasets of different specs, 4 samples that"
            " are missing, damaged or not equal, 75 stopped by SIGTERM or SIGUSR1."
        ),
    )
    parser.add_argument("out", metavar="OUT", help="the new dataset, or that of the same merge")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="the datasets to join")
    add_quiet(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        with (
            usage_errors(),
            stopping() as stop,
            tqdm(unit="img", desc="merging", disable=args.quiet or None) as bar,
        ):
            report = merge(args.out, args.folders, progress=bar.update, stop=stop)
    except DatasetError as error:
        say(f"fastdiff merge: {shown(error)}", error=True)
        return UNSOUND
    folder = Folder(Path(args.out))
    grid = report.complete and write_grid(folder, class_names(folder.spec))
    status = 0 if report.complete else AGAIN
    if args.json:
        say_json(as_json(folder, report))
        return status
    say(
        f"{report.images} samples in {report.seconds:.1f} s; {report.done} of {report.units} units"
        f" are in {shown(args.out)}"
    )
    if grid:
        say(f"  {shown(folder.path / 'grid.png')}: the first images")
    return status
