"""What a format is given and what it promises: a block of samples in memory becomes files, and
files the block again.

Samples are numbered by their ids along one line. A unit is a block of consecutive ids; its files
and its record (a JSON sidecar) are all that a dataset knows of it.
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

# the data types of samples, and how they lie in files: little-endian on every machine
STORED: dict[str, np.dtype[Any]] = {"uint8": np.dtype("|u1"), "float32": np.dtype("<f4")}


@dataclass(frozen=True, eq=False)
class Block:
    """The samples of one unit, in memory.

    array: pictures [n, H, W, C] uint8, or other data and latents [n, …] float32 in the network's
        layout.
    """

    unit: int
    first: int  # id of the first sample; the ids are first … first + n - 1
    seed: int
    array: np.ndarray
    labels: Sequence[int] | None  # class per sample

    @property
    def ids(self) -> range:
        return range(self.first, self.first + len(self.array))


class Source(Protocol):
    """Samples to export, streamed in the order of their ids. `blocks`, `labels` and `ids` start
    anew at each call.
    """

    count: int  # of samples
    shape: tuple[int, ...]  # of one sample
    dtype: str
    seed: int
    labelled: bool
    partial: bool  # some ids between the first and the last are missing
    provenance: dict[str, str]

    def ids(self) -> Iterator[range]: ...
    def labels(
        self,
    ) -> Iterator[tuple[range, Sequence[int]]]: ...  # (ids, classes), without reading pixels
    def blocks(self) -> Iterator[Block]: ...


class Format(Protocol):
    """One way to keep samples in files. Bytes are a function of the arguments and of `encoder`
    alone.
    """

    name: str
    folder: bool  # an export is a folder of files; else one file

    def encoder(self, shape: Sequence[int], dtype: str) -> str | None:
        """The library whose version the bytes depend on, as `name version`; None where they are
        fixed for ever.
        """

    def check(self, shape: Sequence[int], dtype: str) -> None:
        """Raises ValueError in one sentence when samples of this shape and type cannot be kept
        so.
        """

    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        """(path relative to the dataset's folder, '/'-separated; complete content) of each file of
        a unit.
        """

    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        """block.array again (possibly read-only), from record["files"], ["shape"] and ["dtype"].

        Raises FileNotFoundError or ValueError in one sentence that names the file. Content is
        checked as far as the format allows; whether the pixels are the right ones says
        `pixels_sha256`.
        """

    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """Writes all samples to the new file, or into the empty folder, `out`. Memory: one unit."""


def shard_name(unit: int, extension: str) -> str:
    """shards/00012/000012345.npy: at most 1,000 files a folder."""
    return f"shards/{unit // 1000:05d}/{unit:09d}.{extension}"


def stored(array: np.ndarray) -> np.ndarray:
    """The array as it lies in files: C order, little-endian. Raises ValueError for other types than
    uint8, float32.
    """
    dtype = STORED.get(array.dtype.name)
    if dtype is None:
        raise ValueError(
            f"fastdiff.jobs: expected samples of type uint8 or float32, got {array.dtype.name}."
        )
    return np.ascontiguousarray(array, dtype=dtype)


def pixels_sha256(array: np.ndarray) -> str:
    """SHA-256 (hex) of the array's bytes as `stored`: what the record calls `pixels`."""
    return hashlib.sha256(raw(stored(array))).hexdigest()


def raw(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def int64(values: Iterable[int]) -> np.ndarray:
    return np.array(values, dtype="<i8")


def checked(fmt: Format, block: Block) -> np.ndarray:
    """The block's array as stored, after the checks that every format makes."""
    array = stored(block.array)
    fmt.check(array.shape[1:], array.dtype.name)
    if block.labels is not None and len(block.labels) != len(array):
        raise ValueError(
            f"fastdiff.jobs: expected {len(array)} labels in unit {block.unit}, one per sample, got"
            f" {len(block.labels)}."
        )
    return array


def is_picture(shape: Sequence[int], dtype: str) -> bool:
    """uint8 [H, W, C] of 1 to 4 channels: grey, grey and alpha, RGB, RGB and alpha."""
    return dtype == "uint8" and len(shape) == 3 and 1 <= shape[2] <= 4


def facts(block: Block, index: int, provenance: Mapping[str, str]) -> dict[str, str | int]:
    """What a file says of its sample: where it comes from, in a fixed order. The sample's own facts
    come first.
    """
    own: dict[str, str | int] = {"sample_id": block.ids[index], "seed": block.seed}
    if block.labels is not None:
        own["class"] = int(block.labels[index])
    return own | {key: provenance[key] for key in sorted(provenance) if key not in own}


def compact(value: Any) -> bytes:
    """JSON in one fixed spelling."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def contents(folder: Path, record: Mapping[str, Any]) -> Iterator[tuple[Path, bytes]]:
    """(path, content) of each file of a unit. Raises FileNotFoundError or ValueError in one
    sentence.
    """
    for file in record["files"]:
        name = PurePosixPath(file["name"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(
                f"fastdiff.jobs: expected a file inside {folder}, got {file['name']!r} in a record."
            )
        path = folder / name
        try:
            yield path, path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(f"fastdiff.jobs: expected the file {path}, got none.") from None


def content(folder: Path, record: Mapping[str, Any]) -> tuple[Path, bytes]:
    """The same for the formats that keep a unit in one file."""
    files = list(contents(folder, record))
    if len(files) != 1:
        raise ValueError(
            f"fastdiff.jobs: expected one file in the record of unit {record['unit']}, got"
            f" {len(files)}."
        )
    return files[0]


class Other(ValueError):
    """What a file holds, in words, where it is not what was expected."""


def decoded(
    path: Path, kind: str, decode: Callable[[], np.ndarray], shape: Sequence[int], dtype: str
) -> np.ndarray:
    """decode(), held to the shape and type of the record."""
    try:
        array = decode()
        if array.shape != tuple(shape) or array.dtype.name != dtype:
            raise Other(f"{array.dtype.name} {list(array.shape)}")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        found = (
            str(error) if isinstance(error, Other) else f"damaged content ({type(error).__name__})"
        )
        raise ValueError(
            f"fastdiff.jobs: expected {path} to hold {kind} of {dtype} {list(shape)}, got {found}."
        ) from None
    return array


def size_of(shape: Iterable[int], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
