"""Fashion-MNIST: 28×28 grey images of ten kinds of clothes.

(Xiao, Rasul & Vollgraf 2017; MIT licence.) The 10,000 test images are part of the package; the full
set is read from IDX files, as Debian's package dataset-fashion-mnist installs them.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..outside import read_bytes, shown

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
LARGEST = 1 << 30  # bytes of a file, also after decompression
DIMENSIONS = 4
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

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Returns (x0 float32 [B, C, H, W] in [-1, 1], labels [B]); level k becomes k/127.5 - 1.

        Nothing is drawn: the seed and the epoch change nothing.
        """
        return self.images[index].to(torch.float32) / 127.5 - 1.0, self.labels[index]


def read_idx(path: str | PathLike[str]) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not; returns uint8 [N, …].

    Raises FileNotFoundError, or ValueError for a file that is not IDX, is incomplete or damaged, or
    holds more than `LARGEST` bytes.
    """
    path, data = Path(path), b""
    try:
        packed = read_bytes(path, LARGEST)
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
                data = file.read(LARGEST + 1)
                if len(data) > LARGEST:
                    raise ValueError(f"more than {LARGEST} bytes")
        else:
            data = packed
    except FileNotFoundError:
        raise FileNotFoundError(
            f"fastdiff.data: expected the IDX file {shown(path)}, got none. Install Debian's"
            " dataset-fashion-mnist or pass its folder."
        ) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        kind = "gzip data" if path.suffix == ".gz" else "an IDX file"
        raise ValueError(
            f"fastdiff.data: expected {kind} in {shown(path)}, got {shown(error)}."
        ) from None
    if (
        data[:3] != b"\0\0\x08"
        or not 1 <= (data[3] if len(data) > 3 else 0) <= DIMENSIONS
        or len(data) < 4 + 4 * data[3]
    ):
        raise ValueError(
            "fastdiff.data: expected an IDX file of unsigned bytes, got other content in"
            f" {shown(path)}."
        )
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != math.prod(shape):
        raise ValueError(
            f"fastdiff.data: expected {math.prod(shape)} bytes of data in {shown(path)}, got"
            f" {body.size}."
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
    if images.ndim != 3 or not images.size or labels.shape != images.shape[:1]:
        raise ValueError(
            f"fastdiff.data: expected one label per image in {shown(folder)}, got"
            f" {list(images.shape)} and {list(labels.shape)}."
        )
    if labels.max() >= len(CLASSES):
        raise ValueError(
            f"fastdiff.data: expected labels below {len(CLASSES)} in {shown(folder)}, got"
            f" {labels.max()}."
        )
    return images, labels
