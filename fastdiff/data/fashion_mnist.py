"""Fashion-MNIST: 28×28 grey images of ten kinds of clothes.

(Xiao, Rasul & Vollgraf 2017; MIT licence.) The 10,000 test images are part of the package; the full
set is read from IDX files, as Debian's package dataset-fashion-mnist installs them.
"""

from __future__ import annotations

import gzip
import math
import struct
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
BUNDLED = Path(__file__).parent / "fashion_mnist"
HELD_OUT = 1_000  # the last ids of the bundled 10,000
BUNDLED_TRAIN = 9_000  # the ids before them, on which `fashion-mnist` trains
SPLITS = ("bundled-train", "bundled-test", "train", "test")


class DataSet(NamedTuple):
    """Images and labels.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        classes: the names of the labels.
        name: the data set and its split, for provenance.
        shape: of one example.
        levels: of a pixel, 256.
        examples: N.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def levels(self) -> int:
        return 256

    @property
    def examples(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (x0 float32 [B, C, H, W] in [-1, 1], labels [B]); level k becomes k/127.5 - 1."""
        return self.images[index].to(torch.float32) / 127.5 - 1.0, self.labels[index]


def read_idx(path: str | PathLike[str]) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not; returns uint8 [N, …].

    Raises FileNotFoundError, or ValueError for a file that is not IDX or is incomplete.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"fastdiff.data: expected the IDX file {path}, got none. Install Debian's"
            " dataset-fashion-mnist or pass its folder."
        )
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"fastdiff.data: expected gzip data in {path}, got {error}.") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(
            f"fastdiff.data: expected an IDX file of unsigned bytes, got other content in {path}."
        )
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != math.prod(shape):
        raise ValueError(
            f"fastdiff.data: expected {math.prod(shape)} bytes of data in {path}, got {body.size}."
        )
    return body.reshape(shape)


def load_fashion_mnist(
    split: str = "bundled-train", root: str | PathLike[str] | None = None
) -> DataSet:
    """Returns a split of Fashion-MNIST.

    bundled-train and bundled-test are ids 0–8,999 and 9,000–9,999 of the 10,000 images in the
    package (the original test set). train (60,000) and test (10,000) are the splits of the full
    set, read from `root` or the Debian package's folder.
    """
    if split not in SPLITS:
        raise ValueError(f"fastdiff.data: expected split in {list(SPLITS)}, got {split!r}.")
    if split.startswith("bundled"):
        images, labels = _read(BUNDLED, "t10k")
        part = slice(None, -HELD_OUT) if split == "bundled-train" else slice(-HELD_OUT, None)
        images, labels = images[part], labels[part]
    else:
        images, labels = _read(
            Path(root) if root else SYSTEM, "train" if split == "train" else "t10k"
        )
    x = torch.from_numpy(images.copy())[:, None]
    return DataSet(x, torch.from_numpy(labels.astype(np.int64)), CLASSES, f"fashion-mnist {split}")


def _read(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    def existing(name: str) -> Path:
        plain = folder / name
        return plain if plain.exists() else folder / f"{name}.gz"

    images = read_idx(existing(f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(existing(f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"fastdiff.data: expected one label per image in {folder}, got {list(images.shape)} and"
            f" {list(labels.shape)}."
        )
    return images, labels
