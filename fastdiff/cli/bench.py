"""`fastdiff bench`: what fastdiff brings on this machine with this model, as a table of ratios."""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..jobs.job import DTYPES
from ..pretrained import shipped
from ..pretrained.files import write_atomically
from ..versions import __version__
from .exits import arguments

VERSIONS = ("torch", "diffusers", "triton", "numpy")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure a model on this machine: network, whole runs, the loop",
        description=(
            "Measure a model on this machine: one call of its network as it is and accelerated,"
            " whole runs by fastdiff and by diffusers' scheduler around the same network, and the"
            " loop alone. Arms take turns in one process; a ratio is a median with its 20th and"
            " 80th percentile, and above 1 fastdiff is faster."
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
    parser.add_argument("--shape", help="one sample's, as 3,32,32, for factories that do not say")
    parser.add_argument("--solver", help="see `fastdiff solvers`; the model's own by default")
    parser.add_argument("--steps", type=int, default=10, help="(10); times are per step")
    parser.add_argument("--batch", type=int, default=8, metavar="B", help="samples together (8)")
    parser.add_argument(
        "--guidance", type=float, help="gamma of u + gamma (c - u); the model's own by default"
    )
    parser.add_argument(
        "--conditions",
        metavar="FILE",
        help="a line for each of the B samples: a class, a prompt, or JSON",
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of each comparison, three rounds at least (4)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own number)")
    parser.add_argument(
        "--dtype", choices=(*DTYPES, "auto"), default="auto", help="the network's (auto)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU where there is one)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="the rows too; `python -m benchmarks.report` reads them",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .bench_run import Bench  # measuring imports what other commands do not need

    before = torch.get_num_threads()
    with arguments():
        if args.shape is not None and not re.fullmatch(r"\d+(,\d+)*", args.shape):
            raise ValueError(
                f"fastdiff bench: expected --shape as numbers like 3,32,32, got {args.shape!r}."
            )
        if args.threads is not None and args.threads < 1:
            raise ValueError(f"fastdiff bench: expected --threads >= 1, got {args.threads}.")
        if args.json is not None and not args.json.parent.is_dir():
            raise ValueError(
                f"fastdiff bench: expected --json in a folder that is there, got {args.json}."
            )
        settings: dict[str, Any] = {"steps": args.steps}
        settings |= {
            k: v
            for k, v in (("solver", args.solver), ("guidance_scale", args.guidance))
            if v is not None
        }
        shape = None if args.shape is None else tuple(map(int, args.shape.split(",")))
        if args.threads is not None:
            torch.set_num_threads(args.threads)
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
    try:
        rows = bench.rows(lambda text: print(f"measuring {text} …", file=sys.stderr, flush=True))
    finally:
        torch.set_num_threads(before)
    print(describe(rows))
    if args.json is not None:
        text = json.dumps(as_json(rows), indent=1) + "\n"
        write_atomically(args.json, lambda path: path.write_text(text, encoding="utf-8"))
    return 0


def describe(rows: list[dict[str, Any]]) -> str:
    """The table."""
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
    """As pytest-benchmark writes them, so that one report reads both."""
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
