"""Opens the sets that `fastdiff metrics` compares, whatever holds them.

A dataset of `fastdiff sample` and everything that fastdiff.data loads become batches of pictures
uint8 [B, C, H, W], or of points. A file of statistics has none.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import data as datasets
from ..images import to_uint8
from ..outside import open_regular, shown
from .exit_status import UsageError

SPLITS = ("train", "test")
CHANNELS = (1, 3)
_WHERE = "fastdiff.metrics"


@dataclass(frozen=True)
class PictureSet:
    """A set of pictures, which one pass streams.

    Attributes:
        name: for the report.
        count: of the pictures.
        batches: batch size -> the batches, from the first one on.
    """

    name: str
    count: int
    batches: Callable[[int], Iterator[Tensor]]


def is_statistics(text: str) -> bool:
    """Returns whether a text names an npz file that has `mu`, hence no pictures."""
    return "mu.npy" in _members(text)


def open_set(text: str, root: str | None, options: Mapping[str, Any]) -> PictureSet:
    """Returns the set that a command-line argument names.

    Args:
        text: a folder or file, or the name of a data set; :test or :train after it is the split.
            Without one it is the whole of a path, and the training set of a name.
        root: folder of fashion-mnist-full's IDX files.
        options: of fastdiff.data.load, for pictures in files.

    Raises UsageError for what is no set of pictures; ValueError and FileNotFoundError for damaged
    ones.
    """
    path = Path(text)
    if path.is_dir() and (path / "spec.json").exists():
        return _of_samples(path)
    name, colon, split = text.rpartition(":")
    if not colon or split not in SPLITS or path.exists():
        name, split = text, "train" if text in datasets.NAMES else "all"
    if name not in datasets.NAMES and not os.path.exists(name):
        raise UsageError(
            f"expected a folder, a file or a data set in {list(datasets.NAMES)}, got {name!r}."
        )
    return _of_data(datasets.load(name, split, root, **options))


def _of_samples(folder: Path) -> PictureSet:
    """The samples of a dataset of `fastdiff sample`, each unit checked against its record."""
    from ..jobs.samples import Samples

    samples = Samples(folder, None, partial=False)

    def batches(size: int) -> Iterator[Tensor]:
        # a network's features differ in the last bits with the batch, so that every kind of set
        # comes in the same batches
        held, waiting = [], 0
        for block in samples.blocks():
            for part in _pictures(block.array, str(folder)).split(size):
                held.append(part)
                waiting += len(part)
                if waiting >= size:
                    whole = torch.cat(held)
                    yield whole[:size]
                    held, waiting = [whole[size:]], waiting - size
        if waiting:
            yield torch.cat(held)

    return PictureSet(str(folder), samples.count, batches)


def _of_data(data: Any) -> PictureSet:
    def batches(size: int) -> Iterator[Tensor]:
        for index in torch.arange(data.examples).split(size):
            if isinstance(data, datasets.Pictures):
                yield data.pictures(index)
                continue
            x0, _ = data.batch(index)
            yield to_uint8(x0) if data.levels else x0

    return PictureSet(data.name, data.examples, batches)


def _pictures(array: np.ndarray, name: str) -> Tensor:
    """Returns uint8 [B, C, H, W] of pictures [B, H, W, C]; floating types stay as they are."""
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, np.float32))
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in CHANNELS:
        return torch.from_numpy(np.array(np.moveaxis(array, 3, 1), order="C"))
    raise ValueError(
        f"{_WHERE}: expected pictures uint8 [N, H, W, 1 or 3] in {shown(name)}, got {array.dtype}"
        f" {list(array.shape)}."
    )


def _members(text: str) -> list[str]:
    """Returns the names of the files in an npz file; none for anything else."""
    path = Path(text)
    if path.suffix != ".npz" or not path.is_file():
        return []
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        raise ValueError(
            f"{_WHERE}: expected an npz file in {shown(path)}, got unreadable content."
        ) from None
