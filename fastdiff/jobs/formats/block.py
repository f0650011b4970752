"""Blocks of samples, and the helpers that every format uses to write and read them.

Samples are numbered by their ids. A unit is a block of consecutive ids; a dataset knows a unit by
its data files and its record (a JSON file).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from ...outside import read_bytes
from ..records import sample_files

# the data types of samples and their types in files: little-endian on every machine
STORED: dict[str, np.dtype[Any]] = {"uint8": np.dtype("|u1"), "float32": np.dtype("<f4")}


@dataclass(frozen=True, eq=False)
class Block:
    """The samples of one unit, in memory.

    Attributes:
        unit: number of the unit.
        first: id of the first sample; the ids are first … first + n - 1.
        seed: seed of the run.
        array: pictures [n, H, W, C] uint8; other data and latents [n, …] float32 in the network's
            layout.
        labels: class of each sample, None without classes.
    """

    unit: int
    first: int
    seed: int
    array: np.ndarray
    labels: Sequence[int] | None

    @property
    def ids(self) -> range:
        return range(self.first, self.first + len(self.array))


class Source(Protocol):
    """Samples to export, streamed in the order of their ids.

    `ids`, `labels` and `blocks` start again at the first sample on each call.
    """

    count: int  # of samples
    shape: tuple[int, ...]  # of one sample
    dtype: str
    seed: int
    labelled: bool
    partial: bool  # some ids between the first and the last are missing
    provenance: dict[str, str]

    def ids(self) -> Iterator[range]:
        """Yields the ids of each unit."""

    def labels(self) -> Iterator[tuple[range, Sequence[int]]]:
        """Yields (ids, classes) of each unit, without reading samples."""

    def blocks(self) -> Iterator[Block]:
        """Yields the samples of each unit."""


def stored(array: np.ndarray) -> np.ndarray:
    """Returns the array as files hold it: C order, little-endian.

    Raises ValueError for types other than uint8 and float32.
    """
    dtype = STORED.get(array.dtype.name)
    if dtype is None:
        raise ValueError(
            f"fastdiff.jobs: expected samples of type uint8 or float32, got {array.dtype.name}."
        )
    return np.ascontiguousarray(array, dtype=dtype)


def pixels_sha256(array: np.ndarray) -> str:
    """Returns the SHA-256 (hex) of the bytes of `stored(array)`: `pixels` in a unit's record."""
    return hashlib.sha256(raw(stored(array))).hexdigest()


def raw(array: np.ndarray) -> memoryview:
    """Returns the bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def int64(values: Sequence[int]) -> np.ndarray:
    """Returns the numbers as little-endian int64."""
    return np.array(values, dtype="<i8")


def size_of(shape: Iterable[int], dtype: str) -> int:
    """Returns the bytes of an array of this shape and type."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def shard_name(unit: int, extension: str) -> str:
    """shards/00012/000012345.npy: at most 1,000 files in a folder."""
    return f"shards/{unit // 1000:05d}/{unit:09d}.{extension}"


def is_picture(shape: Sequence[int], dtype: str) -> bool:
    """uint8 [H, W, C] of 1 to 4 channels: grey, grey and alpha, RGB, RGB and alpha."""
    return dtype == "uint8" and len(shape) == 3 and 1 <= shape[2] <= 4


def facts(block: Block, index: int, provenance: Mapping[str, str]) -> dict[str, str | int]:
    """Returns what a file says about the origin of one sample, in a fixed order.

    The sample's own facts (id, seed, class) come first, then the provenance sorted by key.
    """
    own: dict[str, str | int] = {"sample_id": block.ids[index], "seed": block.seed}
    if block.labels is not None:
        own["class"] = int(block.labels[index])
    return own | {key: provenance[key] for key in sorted(provenance) if key not in own}


def compact(value: Any) -> bytes:
    """Returns the value as JSON in one fixed spelling."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def contents(folder: Path, record: Mapping[str, Any], count: int) -> Iterator[tuple[Path, bytes]]:
    """Yields (path, content) of each of the `count` files of a unit's samples.

    Raises FileNotFoundError or ValueError in one sentence.
    """
    files = sample_files(record)
    if len(files) != count:
        raise ValueError(
            f"fastdiff.jobs: expected {count} file{'s' if count > 1 else ''} in the record of unit"
            f" {record['unit']}, got {len(files)}."
        )
    for file in files:
        name = PurePosixPath(file["name"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(
                f"fastdiff.jobs: expected a file inside {folder}, got {file['name']!r} in a record."
            )
        path = folder / name
        try:
            yield path, read_bytes(path, file["bytes"])
        except ValueError as error:
            raise ValueError(
                f"fastdiff.jobs: expected {path} to hold {file['bytes']} bytes, got {error}."
            ) from None
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(f"fastdiff.jobs: expected the file {path}, got none.") from None


def content(folder: Path, record: Mapping[str, Any]) -> tuple[Path, bytes]:
    """Returns (path, content) of the file of a unit that has one file; see `contents`."""
    (file,) = contents(folder, record, 1)
    return file


class UnexpectedContent(ValueError):
    """A file does not hold what its record says; the message says what it holds."""


def decoded(
    path: Path, kind: str, decode: Callable[[], np.ndarray], shape: Sequence[int], dtype: str
) -> np.ndarray:
    """Returns decode(), after comparing its shape and type with those of the record.

    Raises ValueError in one sentence for any other array, and for any error of `decode`.
    """
    try:
        array = decode()
        if array.shape != tuple(shape) or array.dtype.name != dtype:
            raise UnexpectedContent(f"{array.dtype.name} {list(array.shape)}")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        found = (
            str(error)
            if isinstance(error, UnexpectedContent)
            else f"damaged content ({type(error).__name__})"
        )
        raise ValueError(
            f"fastdiff.jobs: expected {path} to hold {kind} of {dtype} {list(shape)}, got {found}."
        ) from None
    return array
