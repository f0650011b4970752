"""NumPy's npy: a header, then the samples in C order.

This module writes the header itself, because NumPy's padding has changed between versions: a file
has the same bytes under any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import Format
from .block import (
    STORED,
    Block,
    Source,
    UnexpectedContent,
    content,
    decoded,
    raw,
    shard_name,
    size_of,
)

DESCRIPTIONS = {"uint8": "|u1", "float32": "<f4", "int64": "<i8"}


def header(shape: Sequence[int], dtype: str) -> bytes:
    """Returns the header of format 1.0 (NumPy enhancement proposal 1).

    It is a magic string, the version, the length and a Python literal, padded to 64 bytes.
    """
    dims = tuple(int(n) for n in shape)
    text = f"{{'descr': '{DESCRIPTIONS[dtype]}', 'fortran_order': False, 'shape': {dims}, }}"
    total = -(-(10 + len(text) + 1) // 64) * 64
    return (
        b"\x93NUMPY\x01\x00"
        + (total - 10).to_bytes(2, "little")
        + (text.ljust(total - 11) + "\n").encode("ascii")
    )


def encode(array: np.ndarray) -> bytes:
    """Returns an npy file of the array."""
    return b"".join((header(array.shape, array.dtype.name), raw(array)))


def decode(data: bytes, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Returns the array of a file that `encode` wrote.

    The header is compared with the expected one and not parsed.
    """
    start = header(shape, dtype)
    if not data.startswith(start):
        raise UnexpectedContent("another header")
    if len(data) != len(start) + size_of(shape, dtype):
        raise UnexpectedContent(
            "too few bytes" if len(data) < len(start) + size_of(shape, dtype) else "too many bytes"
        )
    return np.frombuffer(data, dtype=STORED[dtype], offset=len(start)).reshape(tuple(shape))


class Npy(Format):
    name = "npy"
    summary = "one array"
    export_labels = False
    export_ids = False

    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        yield shard_name(block.unit, "npy"), encode(self.checked(block))

    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        path, data = content(folder, record)
        shape, dtype = record["shape"], record["dtype"]
        return decoded(path, "npy", lambda: decode(data, shape, dtype), shape, dtype)

    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """Writes one file [N, …], which `np.load(out, mmap_mode="r")` maps.

        Row i is sample i after the first.
        """
        with open(out, "wb") as file:
            file.write(header((source.count, *source.shape), source.dtype))
            for block in source.blocks():
                file.write(raw(block.array))
