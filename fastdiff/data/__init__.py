"""Data sets: images with labels, and points of the plane with a density.

What they have in common is in `Data`; `batches` yields their examples in the order of a plan.
`load` finds a data set by the name that the command line uses.
"""

from __future__ import annotations

from os import PathLike

from .contract import Condition, Data
from .fashion_mnist import BUNDLED, BUNDLED_TRAIN, DataSet, load_fashion_mnist
from .loading import batches
from .toys import TOYS, Toy, load_toy

IMAGES = {
    "fashion-mnist": ("bundled-train", "bundled-test"),
    "fashion-mnist-full": ("train", "test"),
}
NAMES = (*IMAGES, *TOYS)


def load(name: str, split: str = "train", root: str | PathLike[str] | None = None) -> DataSet | Toy:
    """Returns the `train` or `test` split of a data set, by name.

    `fashion-mnist` is the 10,000 bundled images (9,000 and 1,000). `fashion-mnist-full` is the
    whole set: 60,000 images of `root` or the Debian package, and the 10,000 bundled ones, which are
    its test images. Only this set reads `root`. The other names are points of the plane.

    Raises ValueError for other names or splits, FileNotFoundError for missing files.
    """
    if name not in NAMES or split not in ("train", "test"):
        raise ValueError(
            f"fastdiff.data: expected a data set in {list(NAMES)} and split train or test, got"
            f" {name!r} and {split!r}."
        )
    if name in TOYS:
        return load_toy(name, split)
    if name == "fashion-mnist-full" and split == "test" and root is None:
        root = BUNDLED
    return load_fashion_mnist(IMAGES[name][split == "test"], root)


def family(name: str) -> str:
    """Returns the name for `load` of a data set with the full name `name` ("moons train (…)").

    Raises ValueError for an unknown name.
    """
    first, _, split = name.partition(" ")
    for known, splits in IMAGES.items():
        if first == "fashion-mnist" and split in splits:
            return known
    if first in TOYS:
        return first
    raise ValueError(
        f"fastdiff.data: expected the name of a data set in {list(NAMES)}, got {name!r}."
    )


__all__ = [
    "BUNDLED_TRAIN",
    "IMAGES",
    "NAMES",
    "TOYS",
    "Condition",
    "Data",
    "DataSet",
    "Toy",
    "batches",
    "family",
    "load",
    "load_fashion_mnist",
    "load_toy",
]
