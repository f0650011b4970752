"""`fastdiff export`: writes a dataset in a format of other tools."""

from __future__ import annotations

import argparse
from typing import Any

from tqdm.auto import tqdm

from ..jobs.export import export
from ..jobs.formats import FORMATS
from ..jobs.samples import DatasetError
from ..outside import shown
from .exit_status import UNSOUND, UsageError
from .options import add_quiet, parse_id_range
from .output import say, say_json


def register(subparsers: Any) -> None:
    layouts = "; ".join(f"{f.name}: {f.summary}" for f in FORMATS.values())
    one_file = ", ".join(f.name for f in FORMATS.values() if not f.folder)
    archives = ", ".join(f"{f.name} ({f.per_shard})" for f in FORMATS.values() if f.per_shard)
    parser = subparsers.add_parser(
        "export",
        help=f"write a dataset for other tools: {', '.join(FORMATS)}",
        description=(
            "Write the samples of a dataset in another format, unit by unit, each checked against"
            f" its record. {layouts}."
        ),
    )
    parser.add_argument("folder", metavar="DIR", help="the dataset")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS))
    parser.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help=f"file ({one_file}) or folder to write",
    )
    parser.add_argument("--ids", metavar="A-B", help="only these samples, both included (all)")
    parser.add_argument("--partial", action="store_true", help="leave out units that are missing")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--per-shard",
        type=int,
        metavar="N",
        help=f"samples per archive: {archives}",
    )
    add_quiet(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        with tqdm(unit="img", desc="exporting", disable=args.quiet or None) as bar:
            count = export(
                args.folder,
                args.format,
                args.out,
                ids=None if args.ids is None else parse_id_range(args.ids),
                partial=args.partial,
                overwrite=args.overwrite,
                per_shard=args.per_shard,
                progress=bar.update,
            )
    except DatasetError as error:
        say(f"fastdiff export: {shown(error)}", error=True)
        return UNSOUND
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        raise UsageError(str(error)) from None
    if args.json:
        say_json({"samples": count, "format": args.format, "out": args.out})
    else:
        say(f"{count} samples in {shown(args.out)}")
    return 0
