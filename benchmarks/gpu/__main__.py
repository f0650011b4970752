"""Runs one piece of `make gpu-report`; scripts/gpu_report.py starts a process for each.

    python -m benchmarks.gpu --list
    python -m benchmarks.gpu --piece NAME --file FILE [--device cpu] [--tier default]
                             [--within SECONDS]
    python -m benchmarks.gpu --predictions FOLDER

Exit status: 0 finished, 1 rows failed, 75 the time was over before all rows were measured: run the
same command again.
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
from benchmarks.gpu import ceilings, first, forward_calls, kernels, loops, predictions
from benchmarks.gpu.checkpoint import Checkpoint
from benchmarks.gpu.checkpointed_rows import measure_rows, run_suite
from benchmarks.gpu.common import Rows, Target, device_name
from benchmarks.rows import load

FOLDER = Path(__file__).resolve().parents[1]
OWN: dict[str, Callable[[Target], Rows]] = {
    "ceilings": ceilings.rows,
    "kernels-float32": lambda target: kernels.rows(target, torch.float32),
    "kernels-bfloat16": lambda target: kernels.rows(target, torch.bfloat16),
    "loops": loops.rows,
    "networks": forward_calls.rows,
    "first": lambda target: first.rows(target._replace(brief=True)),
}
AGAIN = 75


def pieces() -> dict[str, str]:
    """Returns {name: description} of the pieces, in order."""
    about = {
        "ceilings": "copy, fill, matrix products, torch.randn",
        "kernels-float32": (
            "steps, noise exact and fast, sums, on each backend; the predictions' rows"
        ),
        "kernels-bfloat16": "the same in bfloat16",
        "loops": (
            "whole loops and a step's graph next to diffusers and torch.compile; seeds per sample"
        ),
        "networks": "U-Nets and DiTs in each mode",
        "first": "kernels replayed from graphs, a graphed step, the host's time of a call: 150 s",
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
        name = re.sub(r"[^a-z0-9]+", "-", device_name(args.device).lower()).strip("-")
        print(json.dumps({"machine": name, "device": args.device, "pieces": pieces()}))
        return 0
    return run(args.piece, args.file, args.device, args.tier, args.within)


def run(piece: str, file: Path, device: str, tier: str, within: float) -> int:
    """Measures the rows that the piece's file does not have yet."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    about: dict[str, Any] = {
        "python_version": platform.python_version(),
        "machine": platform.machine(),
        "fastdiff": facts(device, tier),
    }
    checkpoint = Checkpoint(file, piece, about)
    if device == "cpu":
        checkpoint.leave_out("sizes of real use, CUDA graphs, torch.compile", "there is no GPU")
    if piece in OWN:
        with torch.no_grad():
            done = measure_rows(OWN[piece](Target(device)), checkpoint, within)
    else:
        flags = [] if tier == "default" else [f"--{tier}"]
        test = FOLDER / f"test_{piece.removeprefix('suite-')}.py"
        done = run_suite([str(test), f"--device={device}", *flags], checkpoint, within)
    if not done:
        return AGAIN
    checkpoint.finish()
    for name, reason in checkpoint.failed.items():
        print(f"FAILED {name}: {reason}")
    return 1 if checkpoint.failed else 0


def predicted(folder: Path) -> int:
    """Prints every prediction with its measurement, and writes them to the folder."""
    lines = predictions.check(load(folder).rows)
    print(tables.predicted(lines))
    judged = [line for line in lines if line["measured"] != "-" and line["verdict"] != "dry run"]
    missed = sum(line["verdict"] == "missed" for line in judged)
    dry = sum(line["verdict"] == "dry run" for line in lines)
    print(
        f"{missed} of {len(judged)} measured predictions missed"
        + (f"; {dry} are from a dry run and do not count" if dry else "")
    )
    content = {"benchmarks": [], "predictions": lines}
    (folder / "predictions.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
