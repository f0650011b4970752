"""Finds a data set by name or path, and again by what a model folder keeps about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..outside import shown
from . import arrays, latents, stores
from .contract import Data
from .fashion_mnist import BUNDLED, DataSet, load_fashion_mnist
from .listing import Listing
from .options import WHERE, Options, from_stored
from .pictures import Pictures
from .toys import TOYS, load_toy

IMAGES = {
    "fashion-mnist": ("bundled-train", "bundled-test"),
    "fashion-mnist-full": ("train", "test"),
}
NAMES = (*IMAGES, *TOYS)


def load(
    name: str | PathLike[str],
    split: str = "train",
    root: str | PathLike[str] | None = None,
    **options: Any,
) -> Any:
    """Returns a split of a data set, by name or by path.

    `fashion-mnist` is the 10,000 bundled images (9,000 and 1,000). `fashion-mnist-full` is the
    whole set: 60,000 images of `root` or the Debian package, and the 10,000 bundled ones, which are
    its test images. Only this set reads `root`. `mixture`, `moons` and `swiss-roll` are points of
    the plane. Anything else is a path (write ./moons for a folder of that name):

        a folder or a zip of pictures, with labels in a file or in the names of folders;
        a WebDataset: a tar archive, or a folder of them;
        .npy, .npz (arr_0 or images, arr_1 or labels) and IDX files; latents of `fastdiff data`.

    Args:
        name: or path.
        split: `train` or `test`; of files, also `all`.
        root: see above.
        options: see `Options`; the names `mixture`, `moons` and `swiss-roll` have none.

    Raises ValueError for other names, splits and content, FileNotFoundError for missing files.
    """
    chosen = Options(**options)
    if name not in NAMES:
        return _open(Path(name), split, chosen)
    if split not in ("train", "test"):
        raise ValueError(
            f"{WHERE}: expected a data set in {list(NAMES)} and split train or test, got"
            f" {name!r} and {split!r}."
        )
    name = str(name)
    if name in TOYS:
        used = next(iter(chosen.stored()), None)
        if used is not None:
            raise ValueError(
                f"{WHERE}: expected no {used} for {name}, which is points of the plane, got"
                f" {getattr(chosen, used)}. Leave it out."
            )
        return load_toy(name, split)
    if name == "fashion-mnist-full" and split == "test" and root is None:
        root = BUNDLED
    images = load_fashion_mnist(IMAGES[name][split == "test"], root)
    return _changed(images, name, chosen) if chosen.stored() else images


def reopen(origin: Any, split: str, where: str, **options: Any) -> Any:
    """Returns a split of the data set that `Data.origin` describes.

    Args:
        origin: {"path": …, "options": {…}}, of someone's file.
        split: see `load`.
        where: the file, for messages.
        options: replace those of the origin.

    Raises ValueError for content that is no origin, and as `load` does.
    """
    path, stored = described(origin, where, **options)
    plain = {f.name: getattr(stored, f.name) for f in dataclasses.fields(stored)}
    return load(path, split, **plain)


def described(origin: Any, where: str, **options: Any) -> tuple[str, Options]:
    """Returns (path, options) of an origin. See `reopen`, for the arguments and errors too."""
    if not isinstance(origin, Mapping) or not isinstance(origin.get("path"), str):
        raise ValueError(
            f"{WHERE}: expected the path of a data set in {shown(where)}, got none. Pass --data."
        )
    return origin["path"], from_stored(origin.get("options", {}), where, **options)


def family(name: str, origin: Mapping[str, Any] | None = None) -> str:
    """Returns the name for `load` of a data set with the full name `name` ("moons train (…)").

    origin: of the data set, if it has one; its path is then what `load` takes.

    Raises ValueError for an unknown name.
    """
    if origin is not None and isinstance(origin.get("path"), str):
        return str(origin["path"])
    first, _, split = name.partition(" ")
    for known, splits in IMAGES.items():
        if first == "fashion-mnist" and split in splits:
            return known
    if first in TOYS:
        return first
    raise ValueError(
        f"{WHERE}: expected the name of a data set in {list(NAMES)}, got {shown(repr(name))}."
    )


def _open(path: Path, split: str, options: Options) -> Data:
    listing = _listing(path, options)
    origin = {"path": str(path.absolute()), "options": options.stored()}
    rows = listing.facts.get("rows")
    if listing.kind == "latents":
        return latents.Latents(listing, split, options, origin)
    if rows is not None and rows.array.dtype.kind == "f":
        return arrays.Vectors(listing, split, options, origin)
    return Pictures(listing, split, options, origin)


def _listing(path: Path, options: Options) -> Listing:
    if path.is_dir():
        if arrays.idx_in(path):
            return arrays.idx_files(path, options)
        if (path / "spec.json").exists() and (path / "units").is_dir():
            raise ValueError(
                f"{WHERE}: expected pictures in {shown(path)}, got a dataset of `fastdiff sample`."
                " Export it: fastdiff export FOLDER --format webdataset --out OUT."
            )
        if any(path.glob("*.tar")):
            return stores.webdataset(path, options)
        return stores.folder(path, options)
    kind = path.suffix.lower()
    if not path.exists():
        raise ValueError(
            f"{WHERE}: expected a data set in {list(NAMES)}, or the path of a file or folder, got"
            f" {shown(path)!r}, where there is none."
        )
    if kind == ".npy" and latents.is_latents(path):
        return latents.latents_file(path, options)
    if kind in (".npy", ".npz"):
        return arrays.array_file(path, options)
    if kind == ".zip":
        return stores.archive(path, options)
    if kind == ".tar":
        return stores.webdataset(path, options)
    if "idx" in path.name:
        return arrays.idx_files(path, options)
    raise ValueError(
        f"{WHERE}: expected a folder, .zip, .tar, .npy, .npz or an IDX file, got {shown(path)}."
    )


def _changed(images: DataSet, name: str, options: Options) -> Pictures:
    """Returns named pictures with options, which the plain data set does not have."""
    listing = arrays.listing_of(
        images.images[:, 0].numpy(), images.labels.numpy(), images.name, Path(name), "", options
    )
    for option in ("label_file", "test_share"):
        if getattr(options, option) is not None:
            raise ValueError(
                f"{WHERE}: expected no {option} for {name}, which has labels and splits, got"
                f" {getattr(options, option)}. Leave it out."
            )
    listing.classes = images.classes
    return Pictures(listing, "all", options, {"path": name, "options": options.stored()})
