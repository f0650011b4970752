"""The flags that say which data a command reads, and their loading: train, eval and metrics share
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from .. import data as datasets
from ..data.opening import described
from ..data.options import NAMES as OPTIONS
from ..data.options import Options, from_stored
from ..outside import shown
from ..user_code import call, import_function, is_name, takes
from .exit_status import UsageError
from .output import say

NAMED = 5  # pictures that are left out and named
# what is drawn anew for each epoch, so it is a matter of training
_DRAWN = ("random_crop", "flip", "dequantize")
KINDS = (
    "a name (fashion-mnist: 9,000 bundled images; fashion-mnist-full: the 60,000 of Debian's"
    " dataset-fashion-mnist or --data-root; points of the plane: mixture, moons, swiss-roll), a"
    " folder or .zip of pictures, WebDataset .tar, .npy, .npz, IDX file, or package.module:function"
)


def add_data_flags(
    parser: argparse.ArgumentParser, *, default: str = "fashion-mnist", augment: bool = False
) -> None:
    """Adds --data and the flags of its options.

    Args:
        parser: of the command.
        default: what is read without --data, for the help text.
        augment: whether to add the flags of what is drawn for each epoch.
    """
    group = parser.add_argument_group("the data", "docs/training/data.md has the formats.")
    group.add_argument("--data", metavar="DATA", help=f"{KINDS} ({default})")
    group.add_argument("--data-root", help="folder of fashion-mnist-full's IDX files")
    group.add_argument(
        "--size",
        type=int,
        help="resample each picture's largest centred square to this size (their one size)",
    )
    group.add_argument(
        "--filter", help="of --size: lanczos, or box, the mean of the area (lanczos)"
    )
    group.add_argument(
        "--channels", type=int, help="1 grey or 3 colours (3; 1 if the first picture is grey)"
    )
    group.add_argument(
        "--label-file", help="CSV, TSV or JSON of the labels; none leaves labels out (found)"
    )
    group.add_argument(
        "--test-share", type=float, help="share of the examples that is the split test, by names"
    )
    yes = argparse.BooleanOptionalAction
    group.add_argument(
        "--skip-broken",
        action=yes,
        help="decode everything first and leave out, with a note, what is unreadable (no)",
    )
    group.add_argument(
        "--cache-mib",
        type=int,
        help="keep decoded pictures in memory if all need at most this (1024)",
    )
    if augment:
        group.add_argument(
            "--random-crop",
            action=yes,
            help="cut the square out of one of size/0.875, at a place drawn anew each epoch (no)",
        )
        group.add_argument("--flip", action=yes, help="mirror half of the pictures (no)")
        group.add_argument(
            "--dequantize", action=yes, help="add uniform noise of one level, anew each epoch (no)"
        )


def options_of_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of the data that flags set."""
    found = {name: getattr(args, name, None) for name in OPTIONS}
    file = found["label_file"]
    if file not in (None, "none") and os.path.exists(file):
        found["label_file"] = os.path.abspath(file)  # a model folder is used from other places
    return {name: value for name, value in found.items() if value is not None}


def stored_options(args: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> Any:
    """Returns the options that the flags and a saved run set, as JSON can hold them.

    saved: of the run that is resumed.

    Raises ValueError for an option that has another value in the saved run.
    """
    flags = Options(**options_of_flags(args)).stored()
    given = {k: v for k, v in options_of_flags(args).items() if k != "cache_mib"}
    if saved is None:
        return flags
    before = from_stored(saved, "the run")
    for name, value in given.items():
        if getattr(before, name) != value:
            raise ValueError(
                f"expected --{name.replace('_', '-')} {getattr(before, name)} of the run, got"
                f" {value}. Start another run in another folder."
            )
    return dict(saved)


def may_be_same(before: str, now: str) -> bool:
    """Whether two values of --data may be the same data. Files may have moved.

    What is in the files is part of the data set's name, which the trainer compares.
    """
    return before == now or not {before, now} & set(datasets.NAMES)


def load_data(
    args: argparse.Namespace,
    split: str,
    *,
    run: Mapping[str, Any] | None = None,
    trained: Mapping[str, Any] | None = None,
    augment: bool = False,
) -> Any:
    """Returns a split of the data that the flags name.

    Args:
        args: of a parser with `add_data_flags`.
        split: `train`, `test`, or for files `all`.
        run: the arguments of a training run, whose "data" and "data_options" take the place of the
            flags.
        trained: the data section of a model folder's config.json, for a command without --data.
        augment: whether what is drawn for each epoch is drawn; else the examples as they are.

    A second call with the same arguments returns the same object. Raises UsageError where no data
    are named, else as `fastdiff.data.load` does.
    """
    flags = options_of_flags(args)
    if run is not None:
        name, stored = run["data"], run.get("data_options", {})
        options = from_stored(stored, "the run", **_kept(flags, ("cache_mib",)))
    elif args.data is not None:
        name, options = args.data, Options(**flags)
    elif trained is not None:
        name, options = _of_training(trained, flags)
    else:
        raise UsageError("expected --data, got none.")
    options = options if augment else options.plain()
    key, loaded = (name, split, options), args.__dict__.setdefault("loaded_data", {})
    if key not in loaded:
        loaded[key] = _load(name, split, args.data_root, options)
        _tell_of_skipped(loaded[key])
    return loaded[key]


def _of_training(trained: Mapping[str, Any], flags: dict[str, Any]) -> tuple[str, Options]:
    """Returns (name or path, options) of the data that a model was trained on."""
    origin, full = trained.get("origin"), trained.get("name")
    if origin is None:
        if not isinstance(full, str):
            raise UsageError("expected --data, got none, and the model does not say its own.")
        return datasets.family(full), Options(**flags)
    where = "the model's config.json"
    path, stored = described(origin, where)
    if is_name(path):
        raise UsageError(
            f"expected --data {shown(path)}, got none: {where} names code, which runs only where"
            " the command names it."
        )
    if "test_share" in flags and flags["test_share"] != stored.test_share:
        raise UsageError(
            f"expected the --test-share {stored.test_share} of the training, got"
            f" {flags['test_share']}: the model has seen some of these examples. Leave it out."
        )
    return path, dataclasses.replace(stored, **flags)


def _load(name: str, split: str, root: str | None, options: Options) -> Any:
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    if not is_name(name):
        return datasets.load(name, split, root, **fields)
    where = "fastdiff.data"
    function = import_function(name, where, "data set")
    splits = {"split": split} if "split" in takes(function) else {}
    if split != "train" and not splits:
        raise ValueError(
            f"{where}: expected a function that takes split='test' as {shown(name)}, got one"
            " without split. Add it, or pass --split train."
        )
    made = call(function, splits, name, where)
    wanted = ("examples", "shape", "levels", "classes", "name", "batch")
    kept = _kept(fields, ("size", "channels", "flip"))
    unused = [k for k in options.stored() if k not in kept]
    if all(hasattr(made, k) for k in wanted):
        unused = list(options.stored())
    else:
        made = datasets.wrap(made, name=f"{name} {split}", **kept)
    if unused:
        raise ValueError(
            f"{where}: expected no {unused[0]} for the data set of {shown(name)}, got"
            f" {getattr(options, unused[0])}. Do it in the function."
        )
    if isinstance(getattr(made, "origin", None), dict) and not made.origin:
        made.origin = {"path": name, "options": options.stored()}
    return made


def _tell_of_skipped(data: Any) -> None:
    skipped = getattr(data, "skipped", ())
    if skipped:
        names = ", ".join(shown(name)[:100] for name, _ in skipped[:NAMED])
        more = f" and {len(skipped) - NAMED:,} others" if len(skipped) > NAMED else ""
        count = f"{len(skipped):,} unreadable picture{'s' if len(skipped) > 1 else ''}"
        say(f"left out {count}: {names}{more}; first reason: {skipped[0][1]}", error=True)


def _kept(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in names}
