"""`fastdiff eval`: likelihoods of held-out data under models, in bits per dimension."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import data as datasets
from ..outside import shown
from ..versions import __version__
from .data_flags import add_data_flags, load_data
from .exit_status import usage_errors
from .options import add_options, add_quiet, parse_options, threads
from .output import say, say_json

if TYPE_CHECKING:
    from ..theory.evaluation import Request

UNIFORM = "uniform"
EPILOG = """examples:
  fastdiff eval runs/vdm                             the bound of 1,000 images at 64 times each
  fastdiff eval runs/score --probes 4 --images 100   also the probability flow's likelihood
  fastdiff eval runs/vae --samples 64                also the importance-weighted bound
  fastdiff eval runs/vdm runs/linear --controls --plot terms.png --json table.json
  torchrun --nproc-per-node 2 -m fastdiff eval runs/vdm --images 10000

Every image has its own times, noise and probes, which are functions of --seed and its id. So the
standard error over images includes that over times, and the numbers are the same, bit for bit, for
any number of processes.
"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="bits/dim of model folders: bounds with their terms, exact likelihoods, controls",
        description=(
            "Measure models on held-out data. `uniform` is the uniform model, which has exactly 8"
            " bits per dimension."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="model folder, shipped name, or `uniform`"
    )
    add_data_flags(parser, default="the data of the first folder's training")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code (package.module:factory) that a model folder names as its network",
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="(test)")
    parser.add_argument(
        "--images", type=int, help="number of images (1000, or all if there are fewer)"
    )
    parser.add_argument("--first", type=int, default=0, help="id of the first image (0)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of times, noise, probes and the permutation (0)"
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="measure p(x|y), given the images' labels, instead of p(x)",
    )
    parser.add_argument(
        "--permute-pixels",
        action="store_true",
        help="a control: permute the pixels of all images alike",
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="also measure the uniform model, and the first one on permuted pixels",
    )
    bound = parser.add_argument_group("the bound")
    bound.add_argument(
        "--times",
        type=int,
        default=64,
        help="times for each image, of a bound that is a sum over times (64)",
    )
    bound.add_argument(
        "--samples",
        type=int,
        help="latents of each image; above 1, the importance-weighted bound too (1, or as trained)",
    )
    add_options(bound, "an option of the model's bound")
    flow = parser.add_argument_group(
        "the probability flow's likelihood, of diffusion and score models"
    )
    flow.add_argument(
        "--probes", type=int, default=0, help="Hutchinson probes of each image; 0 leaves it out (0)"
    )
    flow.add_argument(
        "--divergence",
        choices=("rademacher", "gaussian", "exact"),
        default="rademacher",
        help="kind of probes, or `exact`: one backward pass per dimension (rademacher)",
    )
    flow.add_argument("--tolerance", type=float, default=1e-4, help="of the adaptive solver (1e-4)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the numbers as JSON, to a file or stdout",
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw the terms over log-SNR (needs matplotlib)"
    )
    parser.add_argument(
        "--unit",
        type=int,
        default=50,
        help="images measured together; changes the last bits of the result (50)",
    )
    add_quiet(parser)
    parser.add_argument("--threads", type=int, help="CPU threads of a process (torch's default)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        help="minutes the first process waits for the others (30)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with threads(args.threads):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from ..theory.evaluation import Workers, check, evaluate
    from ..theory.evaluation.report import text

    with usage_errors():
        data, measurements = _requested(args)
    workers, results = Workers(args.timeout), []
    for name, request in measurements:
        with usage_errors():
            system, facts = _system(name, args.trust)
            check(system, data, request)
        if not workers.rank:
            _warn_of_overlap(name, data, request.first)
        # the progress bar shows the images of this process
        share = (
            len(range(workers.rank, -(-request.images // request.unit), workers.world))
            * request.unit
        )
        hidden = args.quiet or not sys.stderr.isatty() or workers.rank > 0
        with tqdm(
            total=min(share, request.images), unit="img", desc=shown(name), disable=hidden
        ) as bar:
            result = evaluate(system, data, request, workers, bar.update)
        if result is None:
            continue
        results.append({"model": name, **facts, **result})
        if args.json != "-":
            say(text(result, shown(name)), flush=True)
    if workers.rank:
        return 0
    _write(args, results)
    return 0


def _requested(args: argparse.Namespace) -> tuple[Any, list[tuple[str, Request]]]:
    """Returns (the data, what to measure: a model's name and the request)."""
    from ..theory.evaluation import Request

    if args.plot:
        from .figures import check_target

        check_target(args.plot)
    data = load_data(args, args.split, trained=_trained_on(args))
    request = Request(
        images=args.images or min(1000, data.examples - args.first),
        first=args.first,
        seed=args.seed,
        times=args.times,
        samples=args.samples,
        options=parse_options(args.option),
        probes=args.probes,
        divergence=args.divergence,
        tolerance=args.tolerance,
        with_labels=args.labels,
        permute=args.permute_pixels,
        unit=args.unit,
    )
    plain = dataclasses.replace(
        request, samples=None, options={}, probes=0, divergence="rademacher"
    )
    if set(args.models) == {UNIFORM} and request != plain:
        raise ValueError(
            "expected none of --samples, --option, --probes and --divergence for the uniform model,"
            " whose likelihood is exact, got one."
        )
    permuted = dataclasses.replace(request, permute=True)
    measurements = [(name, plain if name == UNIFORM else request) for name in args.models]
    if args.controls:
        measurements += [(args.models[0], permuted), (UNIFORM, plain)]
    return data, measurements


def _trained_on(args: argparse.Namespace) -> dict[str, Any] | None:
    """Returns what the first folder says about its data; None with --data."""
    from ..pretrained import read_config

    if args.data:
        return None
    for name in args.models:
        if name != UNIFORM:
            trained = read_config(name).get("data", {})
            if trained.get("name") is None:
                raise ValueError(
                    f"expected --data, got none, and {name} does not say what it was trained on."
                )
            return trained
    raise ValueError("expected --data for the uniform model, got none.")


def _warn_of_overlap(name: str, data: datasets.Data, first: int) -> None:
    """Warns on stderr where the test images of the full set were a model's training images."""
    from ..pretrained import read_config

    if name == UNIFORM or data.name != "fashion-mnist test" or first >= datasets.BUNDLED_TRAIN:
        return
    trained = read_config(name).get("data", {}).get("name")
    if trained == "fashion-mnist bundled-train":
        say(
            f"fastdiff eval: {shown(name)} was trained on the images"
            f" 0-{datasets.BUNDLED_TRAIN - 1} of the test split of fashion-mnist-full. Pass --data"
            f" fashion-mnist or --first {datasets.BUNDLED_TRAIN}.",
            error=True,
        )


def _system(name: str, trust: bool = False) -> tuple[Any, dict[str, Any]]:
    """Returns (the system in eval mode, the entries of the result that identify it)."""
    import hashlib

    from ..pretrained import load_system, locate
    from ..theory.evaluation import Uniform
    from ..theory.registry import name_of

    if name == UNIFORM:
        return Uniform(), {"system": UNIFORM, "fastdiff": __version__}
    system = load_system(name, trust=trust)
    weights = hashlib.sha256((locate(name) / "model.safetensors").read_bytes()).hexdigest()
    return system, {
        "system": name_of(system),
        "weights_sha256": weights,
        "fastdiff": __version__,
        "torch": torch.__version__,
    }


def _write(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    from ..theory.evaluation.report import conditional

    # likelihoods that do not compare with the others are in a list of their own
    common = [r for r in results if not conditional(r)]
    given = [r for r in results if conditional(r)]
    found = {"results": common, **({"conditional": given} if given else {})}
    if args.json == "-":
        say_json(found, 2)
    elif args.json:
        from ..pretrained.files import write_json

        write_json(Path(args.json), found)
        say(f"  {args.json}")
    if args.plot:
        from .bound_figure import plot

        plot(common or given, Path(args.plot))
        if args.json != "-":
            say(f"  {args.plot}")
