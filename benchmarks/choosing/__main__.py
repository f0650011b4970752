"""Measures which solver and grid give the best samples, for docs/choosing.md.

    python -m benchmarks.choosing mixture               every solver and grid, on an exact network
    python -m benchmarks.choosing weights --cache DIR   some solvers, with the shipped weights
    python -m benchmarks.choosing mixture --solvers ddim   one solver anew

Both write their part of benchmarks/results/choosing.json, from which `make report` makes the page.
The second one draws the page's picture of samples too. Its classifier needs the full data set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastdiff.solvers import SOLVERS
from fastdiff.solvers.grids import SPACINGS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choosing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("mixture", "weights"))
    parser.add_argument(
        "--solvers", nargs="+", default=list(SOLVERS), metavar="NAME", help="of the mixture (all)"
    )
    parser.add_argument(
        "--grids", nargs="+", default=list(SPACINGS), metavar="NAME", help="of the mixture (all)"
    )
    parser.add_argument("--cache", type=Path, help="folder of the classifier and the samples")
    parser.add_argument("--data-root", help="folder of the full set's IDX files")
    parser.add_argument("--samples", type=int, default=2000, help="of a cell of the weights")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no cell begins")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.part == "mixture":
        from benchmarks.choosing import mixture

        mixture.measure(solvers=args.solvers, grids=args.grids)
        return 0
    if args.cache is None:
        parser.error("weights: expected --cache DIR, got none")
    from benchmarks.choosing import page, plots, weights

    with torch.inference_mode():
        judge = weights.Judge.of(args.cache, args.data_root)
        weights.measure(judge, args.cache, samples=args.samples, minutes=args.minutes)
        weights.repeat(judge, args.cache, samples=args.samples)
        picture = plots.samples(weights.shown(args.cache))
        plots.save(picture, page.FIGURES / "samples.png", colours=24)
    return 0


if __name__ == "__main__":
    sys.exit(main())
