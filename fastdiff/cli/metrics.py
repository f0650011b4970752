"""`fastdiff metrics`: how far a set of pictures is from the data."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..outside import shown
from ..user_code import import_function, is_name, never_exits
from ..versions import __version__
from .exit_status import UNSOUND, UsageError, usage_errors
from .options import add_quiet, threads
from .output import say, say_json
from .picture_sets import PictureSet, is_statistics, open_set

EPILOG = """examples:
  fastdiff metrics out/shoes fashion-mnist-full           samples of a run against the training set
  fastdiff metrics samples.npz fashion-mnist-full:test    ADM's npz against the test images
  fastdiff metrics pictures/ --stats pictures.npz         stores mean and covariance of a data set
  fastdiff metrics out/cats pictures.npz                  and compares samples with them
  fastdiff metrics a.npz b.npz --inception inception-2015-12-05.pt        FID

A and B: a dataset of `fastdiff sample`, an npz (arr_0 uint8 [N, H, W, C]) or npy file, a folder or
zip of pictures or what else `fastdiff train --data` takes (NAME:test for the test split of a data
set), or an npz file of statistics (mu, sigma). A is what is judged, B the data.
"""
_WHERE = "fastdiff.metrics"
PARTS = ("kernel", "precision", "recall", "density", "coverage")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "metrics",
        help="compare two sets of pictures: Fréchet and kernel distance, precision, recall",
        description=(
            "Compare two sets of pictures by the features of a network: Fréchet distance, kernel"
            " distance (KID) with its standard error, precision, recall, density, coverage."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="the set that is judged")
    parser.add_argument("b", metavar="B", nargs="?", help="the data; not with --stats")
    parser.add_argument("--data-root", help="folder of fashion-mnist-full's IDX files")
    parser.add_argument("--size", type=int, help="resample pictures to this size (as they are)")
    parser.add_argument("--filter", help="of --size: lanczos or box (lanczos)")
    parser.add_argument("--channels", type=int, help="1 or 3 (3, or 1 where they are grey)")
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out pictures that cannot be read"
    )
    what = parser.add_argument_group("features")
    what.add_argument(
        "--features",
        default="fashion-mnist",
        metavar="WHAT",
        help=(
            "fashion-mnist (the shipped network: FD-fashion), raw (pixels, or points), a"
            " TorchScript file, or package.module:function that returns a callable"
            " [B, C, H, W] uint8 -> [B, F] (fashion-mnist). The last two run code"
        ),
    )
    what.add_argument(
        "--inception",
        metavar="FILE",
        help="NVIDIA's TorchScript of Inception-v3, for FID; it is run",
    )
    how = parser.add_argument_group("the comparison")
    how.add_argument(
        "--stats",
        metavar="FILE.npz",
        help="write mean and covariance of A's features (mu, sigma, n), and compare nothing",
    )
    how.add_argument(
        "--keep",
        type=int,
        default=10_000,
        help="pictures of each set, the first ones, for all but the Fréchet distance (10000)",
    )
    how.add_argument("--k", type=int, default=3, help="neighbour of precision and recall (3)")
    how.add_argument("--seed", type=int, default=0, help="of the kernel distance's subsets (0)")
    parser.add_argument("--batch-size", type=int, default=100, help="pictures at a time (100)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    add_quiet(parser)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..jobs.samples import DatasetError

    for name in ("keep", "k", "batch_size"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise UsageError(f"expected --{flag} >= 1, got {getattr(args, name)}.")
    if not 0 <= args.seed < 2**64:
        raise UsageError(f"expected --seed in [0, 2**64), got {args.seed}.")
    if (args.b is None) != (args.stats is not None):
        got = "one set alone" if args.b is None else "two sets and --stats"
        raise UsageError(
            f"expected two sets to compare, or one set and --stats FILE.npz, got {got}."
        )
    with threads(args.threads):
        try:
            return _run(args)
        except DatasetError as error:
            say(f"fastdiff metrics: {shown(error)}", error=True)
            return UNSOUND


def _run(args: argparse.Namespace) -> int:
    from ..metrics import compare, save_moments
    from ..metrics.compare import warn_of_bias

    if args.stats is not None and is_statistics(args.a):
        raise UsageError(f"expected pictures in {args.a}, got a file of statistics.")
    texts = [text for text in (args.a, args.b) if text is not None]
    options = {
        name: getattr(args, name)
        for name in ("size", "filter", "channels", "skip_broken")
        if getattr(args, name)
    }
    # both are opened before the work begins
    with usage_errors():
        opened = [
            None if is_statistics(text) else open_set(text, args.data_root, options)
            for text in texts
        ]
        extractor = _extractor(args)
    # and the file of statistics is read first, since it may not fit
    order = sorted(range(len(opened)), key=lambda i: opened[i] is not None)
    found: dict[int, Any] = {}
    for i in order:
        found[i] = _summary(texts[i], opened[i], extractor, args)
    sets = [
        {"name": texts[i] if opened[i] is None else opened[i].name, "samples": found[i].moments.n}  # type: ignore[union-attr]
        for i in range(len(texts))
    ]
    facts: dict[str, Any] = {"features": extractor.name, "dimensions": found[0].moments.features}
    if args.stats is not None:
        with _warnings_as_lines():
            warn_of_bias(found[0])
        save_moments(args.stats, found[0].moments, extractor.name)
        if args.json:
            say_json({"a": sets[0], **facts, "stats": args.stats, "fastdiff": __version__})
        else:
            say(f"{sets[0]['samples']} samples of {shown(sets[0]['name'])} in {shown(args.stats)}")
        return 0
    with _warnings_as_lines():
        result = compare(found[0], found[1], k=args.k, seed=args.seed)
    if args.json:
        report = {"a": sets[0], "b": sets[1], **facts, "title": extractor.title, **result}
        say_json({**report, "fastdiff": __version__})
    else:
        say(text(sets, facts, extractor.title, result))
    return 0


def _extractor(args: argparse.Namespace) -> Any:
    """Returns the feature extractor of --inception or --features."""
    from ..metrics import extractors

    if args.inception is not None:
        return extractors.torchscript(args.inception, inception=True)
    made = {"fashion-mnist": extractors.fashion, "raw": extractors.raw}
    if args.features in made:
        return made[args.features]()
    if os.path.exists(args.features):
        return extractors.torchscript(args.features)
    if is_name(args.features):
        function = import_function(args.features, _WHERE, "features")
        with never_exits(f"{args.features}()", _WHERE):
            made_by_user = function()
        return extractors.of_callable(made_by_user, args.features)
    raise UsageError(
        f"expected --features in {list(made)}, a TorchScript file or package.module:function, got"
        f" {args.features!r}."
    )


def _summary(text: str, opened: PictureSet | None, extractor: Any, args: Any) -> Any:
    from ..metrics import Summary, load_moments, summarize

    if opened is None:
        import torch

        moments, name = load_moments(text)
        if name and name != extractor.name:
            raise ValueError(
                f"expected statistics of the features {extractor.name!r} in {text}, got {name!r}."
            )
        return Summary(moments, torch.empty(0, moments.features), name)
    with _progress(opened.count, Path(opened.name).name, args.quiet) as update:
        return summarize(
            opened.batches(args.batch_size), extractor, keep=args.keep, progress=update
        )


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Prints the warnings of the block on stderr, each as one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        say(f"fastdiff metrics: {shown(warning.message)}", error=True)


@contextmanager
def _progress(total: int, name: str, quiet: bool) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="img", desc=shown(name), disable=quiet or None) as bar:
        yield bar.update


def text(sets: list[dict[str, Any]], facts: Any, title: str, result: dict[str, Any]) -> str:
    """Returns the table."""
    lines = []
    for letter, facts_of in zip("AB", sets, strict=True):
        count = (
            "an unknown number of" if facts_of["samples"] is None else f"{facts_of['samples']:,}"
        )
        lines.append(f"{letter}  {shown(facts_of['name'])}: {count} samples")
    lines += [f"features: {shown(facts['features'])}, {facts['dimensions']}", ""]
    lines.append(f"{title:<12} {result['frechet']:12.4f}")
    if "kernel" in result:
        name = "KID" if title == "FID" else "kernel"  # the former is over Inception's features
        value, error = result["kernel"], result["kernel_standard_error"]
        lines.append(
            f"{name:<12} {value:12.6f} ± {error:.6f}"
            f"   {result['kernel_subsets']} subsets of {result['kernel_size']}"
        )
    for name in PARTS[1:]:
        if name in result:
            k = result["k" if name in ("precision", "recall") else "density_k"]
            lines.append(f"{name:<12} {result[name]:12.4f}   k = {k}")
    if "precision" in result:
        first, second = result["neighbours_of"]
        lines.append(f"precision to coverage: of {first:,} and {second:,} samples")
    if len(result) == 1:
        lines.append("kernel, precision, recall, density, coverage: need the pictures of both sets")
    return "\n".join(lines)
