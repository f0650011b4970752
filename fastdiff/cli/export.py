"""`fastdiff export`: writes a dataset in a format of other tools."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tqdm.auto import tqdm

from ..jobs.export import PER_SHARD, export
from ..jobs.formats import FORMATS
from ..jobs.samples import Unsound
from .exit_status import UNSOUND, UsageError
from .options import parse_id_range


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a dataset for other tools: npz, PNG tree, WebDataset, npy, safetensors",
        description=(
            "Write the samples of a dataset in another format, unit by unit, each checked against"
            " its record. npz: one file with arr_0 and arr_1 (ADM). png: a tree of files with"
            " dataset.json (EDM). webdataset: tar archives. npy: one array. safetensors: one file"
            " of latents."
        ),
    )
    parser.add_argument("folder", metavar="DIR", help="the dataset")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS))
    parser.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="file (npz, npy, safetensors) or folder to write",
    )
    parser.add_argument("--ids", metavar="A-B", help="only these samples, both included (all)")
    parser.add_argument("--partial", action="store_true", help="leave out units that are missing")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--per-shard",
        type=int,
        metavar="N",
        help=f"samples per archive of webdataset ({PER_SHARD})",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        with tqdm(unit="img", desc="exporting", disable=None) as bar:
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
    except Unsound as error:
        print(f"fastdiff export: {error}", file=sys.stderr)
        return UNSOUND
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        raise UsageError(str(error)) from None
    print(f"{count} samples in {args.out}")
    return 0
