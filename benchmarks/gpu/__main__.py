"""One piece of `make gpu-report`; scripts/gpu_report.py runs them, each in a process of its own.

    python -m benchmarks.gpu --list
    python -m benchmarks.gpu --piece NAME --file FILE [--device cpu] [--tier default] [--within
    SECONDS] python -m benchmarks.gpu --predictions FOLDER

Exit status: 0 finished, 1 rows failed, 75 time was up before all rows were begun: again.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.conftest import THREADS, facts
from benchmarks.gpu import ceilings, kernels, loops, networks, predictions
from benchmarks.gpu.checkpointed_rows import Kept, measure, suite
from benchmarks.gpu.common import Place, Rows, named
from benchmarks.rows import load

FOLDER = Path(__file__).resolve().parents[1]
OWN: dict[str, Callable[[Place], Rows]] = {
    "ceilings": ceilings.rows,
    "kernels-float32": lambda place: kernels.rows(place, torch.float32),
    "kernels-bfloat16": lambda place: kernels.rows(place, torch.bfloat16),
    "loops": loops.rows,
    "networks": networks.rows,
}
AGAIN = 75


def pieces() -> dict[str, str]:
    """Names in order, and what each is."""
    about = {
        "ceilings": "copy, fill, matrix products, torch.randn",
        "kernels-float32": (
            "steps, noise exact and fast, sums, on each backend; the predictions' rows"
        ),
        "kernels-bfloat16": "the same in bfloat16",
        "loops": (
            "whole loops and a step's graph beside diffusers and torch.compile; seeds per sample"
        ),
        "networks": "U-Nets and DiTs in each mode",
    }
    files = sorted(path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py"))
    return about | {f"suite-{name}": f"benchmarks/test_{name}.py" for name in files}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="machine, device and pieces as JSON")
    parser.add_argument("--piece", choices=pieces())
    parser.add_argument("--file", type=Path)
    parser.add_argument("--predictions", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--tier", choices=("quick", "default", "full"), default="default")
    parser.add_argument("--within", type=float, default=300.0)
    args = parser.parse_args(argv)
    if args.predictions:
        return predicted(args.predictions)
    if args.list or args.piece is None or args.file is None:
        name = re.sub(r"[^a-z0-9]+", "-", named(args.device).lower()).strip("-")
        print(json.dumps({"machine": name, "device": args.device, "pieces": pieces()}))
        return 0
    return run(args.piece, args.file, args.device, args.tier, args.within)


def run(piece: str, file: Path, device: str, tier: str, within: float) -> int:
    """Measures what the piece's file lacks."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    about: dict[str, Any] = {
        "python_version": platform.python_version(),
        "machine": platform.machine(),
        "fastdiff": facts(device, tier),
    }
    kept = Kept(file, piece, about)
    if piece in OWN:
        with torch.no_grad():
            done = measure(OWN[piece](Place(device)), kept, within)
    else:
        flags = [] if tier == "default" else [f"--{tier}"]
        test = FOLDER / f"test_{piece.removeprefix('suite-')}.py"
        done = suite([str(test), f"--device={device}", *flags], kept, within)
    if not done:
        return AGAIN
    kept.finish()
    for name, reason in kept.failed.items():
        print(f"FAILED {name}: {reason}")
    return 1 if kept.failed else 0


def predicted(folder: Path) -> int:
    """Prints every prediction beside its measurement, and keeps them beside the pieces."""
    lines = predictions.check(load(folder).rows)
    print(tables.predicted(lines))
    judged = [line for line in lines if line["measured"] != "-" and line["verdict"] != "dry run"]
    missed = sum(line["verdict"] == "missed" for line in judged)
    dry = sum(line["verdict"] == "dry run" for line in lines)
    print(
        f"{missed} of {len(judged)} measured predictions missed"
        + (f"; {dry} from a dry run say nothing" if dry else "")
    )
    content = {"benchmarks": [], "predictions": lines}
    (folder / "predictions.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
