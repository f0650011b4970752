"""The examples of a data set of files, before any is decoded: names, sizes, labels and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..outside import shown
from .options import WHERE, Options

TEST = ("test", "val")  # folders of the split `test`, of which the first that exists counts

SPLITS = ("train", "test", "all")
# options that say which examples and labels there are, which the examples and labels say themselves
_CHOOSE = ("label_file", "skip_broken", "test_share")


class Store(Protocol):
    """Reads the examples of a listing."""

    def read(self, example: int) -> bytes | np.ndarray:
        """Returns an encoded picture, or its levels uint8 [H, W, C].

        Raises OSError, or ValueError with part of a sentence.
        """
        ...


@dataclass
class Listing:
    """The examples of a data set of files.

    Attributes:
        kind: of the files, for the name: folder, zip, tar, npy, …
        base: the name of the folder or file.
        names: of the examples, unique; they decide the split and the order.
        sizes: of the examples, in bytes; a change of them is a change of the data.
        store: reads them.
        labels: int64 [N], or None.
        classes: the names of the labels.
        parts: of each example, the split that its folder names, or "".
        digest: of content that names and sizes say nothing about.
        facts: whatever else the kind of data set keeps.
    """

    kind: str
    base: str
    names: Sequence[str]
    sizes: Sequence[int]
    store: Store
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    parts: Sequence[str] | None = None
    digest: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.kind} {shown(self.base)}"


def split_of(listing: Listing, split: str, options: Options) -> np.ndarray:
    """Returns the numbers of the examples in a split, `train`, `test` or `all`, ascending.

    The folders `train` and `test` (or `val`) decide, or options.test_share does: example `name` is
    in the split test where the first 8 bytes of SHA-256(name), as a fraction, are below the share.
    Files that come or go later never move another one. With neither, all are `train`.

    Raises ValueError for a split that has no examples, and where both decide.
    """
    if split not in SPLITS:
        raise ValueError(f"{WHERE}: expected split in {list(SPLITS)}, got {shown(split)}.")
    share, parts = options.test_share, listing.parts
    present = set(parts or ())
    if split == "all":
        return np.arange(len(listing.names))
    if share is not None:
        if present - {""}:
            raise ValueError(
                f"{WHERE}: expected the folder {min(present - {''})} or test_share to decide the"
                f" split of {listing.where}, got both. Leave out --test-share."
            )
        test = np.fromiter((_fraction(n) < share for n in listing.names), bool, len(listing.names))
        chosen = np.flatnonzero(test == (split == "test"))
    elif parts is not None and present - {""}:
        if split == "test":
            wanted = next((t for t in TEST if t in present), "test")
        else:
            wanted = "train" if "train" in present else ""
        chosen = np.flatnonzero(np.array([p == wanted for p in parts], bool))
    else:
        chosen = np.arange(len(listing.names) if split == "train" else 0)
    if not len(chosen):
        advice = (
            "Make a folder test, or train and evaluate with --test-share 0.1"
            if split == "test"
            else "Add some"
        )
        raise ValueError(
            f"{WHERE}: expected examples in the split {split} of {listing.where}, got none."
            f" {advice}."
        )
    return chosen


def identity(listing: Listing, chosen: np.ndarray, options: Options) -> str:
    """Returns 12 hexadecimal digits of what the chosen examples and their reading depend on."""
    used = sorted((k, v) for k, v in options.stored().items() if k not in _CHOOSE)
    digest = hashlib.sha256(f"fastdiff data 1\n{used}\n{listing.digest}\n".encode())
    labels = listing.labels
    digest.update("\0".join(listing.classes).encode("utf-8", "surrogateescape"))
    for i in chosen.tolist():
        label = "" if labels is None else int(labels[i])
        line = f"\n{listing.names[i]}\0{listing.sizes[i]}\0{label}"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def _fraction(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Numbers(Sequence[str]):
    """The names "0", "1", … of the rows of an array."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: Any) -> Any:
        return str(range(self._count)[i])
