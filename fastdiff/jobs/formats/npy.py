"""NumPy's npy: a header, then the samples as they lie in memory.

The header is written here rather than by NumPy, whose padding has changed between versions: a file
    is the same bytes
under any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .block import STORED, Block, Other, Source, checked, content, decoded, raw, shard_name, size_of

DESCRIPTIONS = {"uint8": "|u1", "float32": "<f4", "int64": "<i8"}


def header(shape: Sequence[int], dtype: str) -> bytes:
    """Format 1.0 of NumPy's enhancement proposal 1: magic, version, length, a Python literal,
    padded to 64 bytes.
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
    return b"".join((header(array.shape, array.dtype.name), raw(array)))


def decode(data: bytes, shape: Sequence[int], dtype: str) -> np.ndarray:
    """The array of a file that `encode` wrote. Nothing is believed of the header: it must be the
    one expected.
    """
    start = header(shape, dtype)
    if not data.startswith(start):
        raise Other("another header")
    if len(data) != len(start) + size_of(shape, dtype):
        raise Other(
            "too few bytes" if len(data) < len(start) + size_of(shape, dtype) else "too many bytes"
        )
    return np.frombuffer(data, dtype=STORED[dtype], offset=len(start)).reshape(tuple(shape))


class Npy:
    name = "npy"
    folder = False

    def encoder(self, shape: Sequence[int], dtype: str) -> str | None:
        return None

    def check(self, shape: Sequence[int], dtype: str) -> None:
        pass

    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        yield shard_name(block.unit, "npy"), encode(checked(self, block))

    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        path, data = content(folder, record)
        shape, dtype = record["shape"], record["dtype"]
        return decoded(path, "npy", lambda: decode(data, shape, dtype), shape, dtype)

    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """One file [N, …], to be mapped with `np.load(out, mmap_mode="r")`. Row i is sample i after
        the first.
        """
        if source.partial:
            raise ValueError(
                "fastdiff.export: expected all ids for the format npy, which cannot say which are"
                " missing. Use npz, or a range of --ids without gaps."
            )
        with open(out, "wb") as file:
            file.write(header((source.count, *source.shape), source.dtype))
            for block in source.blocks():
                file.write(raw(block.array))
