"""`fastdiff bench`: measures how much faster fastdiff runs a model on this machine."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..jobs.job import DTYPES
from ..pretrained import shipped
from ..pretrained.files import write_atomically
from ..versions import __version__
from .exit_status import UsageError, usage_errors
from .options import add_quiet, checked_threads, parse_shape
from .output import say, say_json

VERSIONS = ("torch", "diffusers", "triton", "numpy")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure a model on this machine: network, whole runs, the loop",
        description=(
            "Measure a model on this machine: one call of its network, plain and accelerated; whole"
            " runs by fastdiff and by diffusers' scheduler around the same network; and the loop"
            " without the network. What is compared takes turns in one process. A ratio is a median"
            " with its 20th and 80th percentile; above 1 fastdiff is faster."
        ),
        epilog="Exit status: 0 done, 1 failed, 2 wrong arguments.",
    )
    parser.add_argument(
        "--model",
        default=shipped()[0],
        help=(
            "model folder, package.module:factory, a diffusers pipeline's "
            f"folder, or shipped: {', '.join(shipped())} (the default)"
        ),
    )
    parser.add_argument(
        "--shape",
        help="of one sample, as 3,32,32: for factories that do not define it, and other sizes of"
        " pipelines",
    )
    parser.add_argument("--solver", help="see `fastdiff solvers`; the model's own by default")
    parser.add_argument("--steps", type=int, default=10, help="of a run (10); times are per step")
    parser.add_argument(
        "--batch", type=int, default=8, metavar="B", help="samples computed together (8)"
    )
    parser.add_argument(
        "--guidance", type=float, help="gamma of u + gamma (c - u); the model's own by default"
    )
    parser.add_argument(
        "--conditions",
        metavar="FILE",
        help="one line for each of the B samples: a class, a prompt, or JSON",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="time of each comparison, at least three rounds (4)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    parser.add_argument(
        "--dtype", choices=(*DTYPES, "auto"), default="auto", help="of the network (auto)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="also write the rows, as `python -m benchmarks.report` reads them; without FILE print"
        " them instead of the table",
    )
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .bench_measure import Bench  # imports that the other commands do not need

    before = torch.get_num_threads()
    shape = None if args.shape is None else parse_shape(args.shape)
    threads = checked_threads(args.threads)
    if args.json is not None and not Path(args.json).parent.is_dir():
        raise UsageError(f"expected --json FILE in an existing folder, got {args.json}.")
    settings: dict[str, Any] = {"steps": args.steps}
    if args.solver is not None:
        settings["solver"] = args.solver
    if args.guidance is not None:
        settings["guidance_scale"] = args.guidance
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with usage_errors():
            bench = Bench(
                args.model,
                batch=args.batch,
                seconds=args.seconds,
                settings=settings,
                shape=shape,
                device=args.device,
                dtype=args.dtype,
                conditions=args.conditions,
            )
        rows = bench.rows(
            (lambda text: None)
            if args.quiet
            else (lambda text: say(f"measuring {text} …", error=True, flush=True))
        )
    finally:
        torch.set_num_threads(before)
    if args.json == "-":
        say_json(as_json(rows))
        return 0
    say(describe(rows))
    if args.json is not None:
        text = json.dumps(as_json(rows), indent=1) + "\n"
        write_atomically(Path(args.json), lambda path: path.write_text(text, encoding="utf-8"))
    return 0


def describe(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table for people."""
    case, first = rows[0]["case"], rows[0]
    size = "×".join(map(str, case["shape"]))
    lines = [
        f"{case['model']}, {size}, {case['steps']} steps, guidance {case['guidance']:g};"
        f" {first['device']}, backend {first['backend']}, {first['threads']} CPU"
        f" thread{'s' if first['threads'] > 1 else ''}"
    ]
    cells = [("", "µs", "[p20, p80]", "fastdiff is faster by")]
    for row in rows:
        cells.append((f"{row['what']}, per {row['per']}", "", "", ""))
        cells.append((f"  {row['arm']}", *_time(row["us"]), f"(result {row['checked']})"))
        for name, peer in row["peers"].items():
            if "missing" in peer:
                cells.append((f"  {name}", "-", "", peer["missing"]))
                continue
            r = peer["faster"]
            cells.append(
                (
                    f"  {name}",
                    *_time(peer["us"]),
                    f"{r['median']:.2f} [{r['p20']:.2f}, {r['p80']:.2f}]",
                )
            )
    widths = [max(len(cell[i]) for cell in cells) for i in range(3)]
    lines += [
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d}".rstrip()
        for a, b, c, d in cells
    ]
    whole = next(row for row in rows if row["kind"] == "sampling")
    low, middle, high = whole["images_per_s"]
    lines.append(
        f"{middle:.4g} [{low:.4g}, {high:.4g}] samples a second with {case['steps']} steps"
    )
    if "overhead_percent" in whole:
        low, middle, high = whole["overhead_percent"]
        lines.append(
            f"{middle:.2g} % [{low:.2g}, {high:.2g}] of a run is spent outside the network"
        )
    return "\n".join(lines)


def as_json(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows in the form of pytest-benchmark's JSON, which benchmarks.report reads."""
    versions: dict[str, str | None] = {
        "fastdiff": __version__,
        **{name: _version(name) for name in VERSIONS},
    }
    about: dict[str, Any] = {"versions": versions, "missing": [], "gpu": None}
    return {
        "machine_info": {
            "python_version": platform.python_version(),
            "machine": platform.machine(),
            "fastdiff": about,
        },
        "benchmarks": [{"name": row["what"], "extra_info": row} for row in rows],
    }


def _time(us: list[float]) -> tuple[str, str]:
    low, middle, high = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in us)
    return middle, f"[{low}, {high}]"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
