"""`fastdiff ema`: averages the weights of a run over another length, or takes a checkpoint's."""

from __future__ import annotations

import argparse
from typing import Any

from ..outside import shown
from .exit_status import usage_errors
from .output import say

EPILOG = """examples:
  fastdiff train --out runs/unet --ema-rel 0.05,0.1
  fastdiff ema runs/unet --sigma-rel 0.12 --out models/unet-0.12
  fastdiff ema runs/unet --checkpoint best.safetensors --out models/unet-best
  fastdiff sample --model models/unet-0.12 --out samples
"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "ema",
        help="make a model of a run: averaged over another length, or of an earlier checkpoint",
        description=(
            "Write a model whose weights are averaged over a relative length sigma_rel, from the"
            " snapshots of a run that was trained with --ema-rel (Karras et al. 2024); or of the"
            " averaged weights in one of its checkpoints."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", help="the folder of the run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--sigma-rel",
        type=float,
        help="the width of the average relative to the run's length, in (0, 0.28]",
    )
    which.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a checkpoint in the run's folder, such as best.safetensors",
    )
    parser.add_argument(
        "--step", type=int, help="the end of the average of --sigma-rel (the last snapshot)"
    )
    parser.add_argument(
        "--trust", action="store_true", help="run the code that the folder names as its network"
    )
    parser.add_argument("--out", required=True, help="folder of the new model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..training.averages import save, save_checkpoint

    with usage_errors():
        if args.checkpoint is not None:
            if args.step is not None:
                raise ValueError("expected --step with --sigma-rel, got it with --checkpoint.")
            step = save_checkpoint(args.run_folder, args.checkpoint, args.out, trust=args.trust)
            say(f"{shown(args.out)}: the averaged weights after {step} steps")
            return 0
        error = save(args.run_folder, args.sigma_rel, args.out, step=args.step, trust=args.trust)
    say(
        f"{shown(args.out)}: weights averaged with sigma_rel {args.sigma_rel:g}; the profile"
        f" differs from the wanted one by {100 * error:.2g} %"
    )
    return 0
