"""npz as ADM's scripts write it: `arr_0` holds the samples, `arr_1` their classes.

The reference is guided-diffusion (Dhariwal & Nichol 2021). The file is a zip archive of npy
members, without compression and with a fixed date, so that ADM's evaluator can stream `arr_0` and
the bytes are the same everywhere.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .base import Format
from .block import Block, Source, content, decoded, int64, raw, shard_name, size_of
from .npy import decode, header

Member = tuple[
    str, tuple[int, ...], str, Iterable[memoryview]
]  # name, shape, dtype, content in pieces


def archive(file: BinaryIO, members: Iterable[Member]) -> None:
    """Writes the members one after the other.

    Their sizes are known in advance, so that zip64 headers are used only above 4 GiB.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        for name, shape, dtype, pieces in members:
            start = header(shape, dtype)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, on every system
            info.external_attr = 0o644 << 16
            info.file_size = len(start) + size_of(shape, dtype)
            with out.open(info, "w") as member:
                member.write(start)
                for piece in pieces:
                    member.write(piece)


class Npz(Format):
    name = "npz"
    summary = "one file with arr_0 and arr_1 (ADM)"

    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        array = self.checked(block)
        members: list[Member] = [("arr_0", array.shape, array.dtype.name, [raw(array)])]
        if block.labels is not None:
            members.append(("arr_1", (len(array),), "int64", [raw(int64(block.labels))]))
        file = io.BytesIO()
        archive(file, members)
        yield shard_name(block.unit, "npz"), file.getvalue()

    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        path, data = content(folder, record)
        shape, dtype = record["shape"], record["dtype"]

        def arr_0() -> np.ndarray:
            with zipfile.ZipFile(io.BytesIO(data)) as file, file.open("arr_0.npy") as member:
                # bounded by the file's size: members are not compressed
                return decode(member.read(len(data)), shape, dtype)

        return decoded(path, "npz", arr_0, shape, dtype)

    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """Writes one file; with ids missing, its member `ids` lists those present.

        The classes are streamed from the records in a second pass.
        """
        pixels = (raw(block.array) for block in source.blocks())
        members: list[Member] = [("arr_0", (source.count, *source.shape), source.dtype, pixels)]
        if source.labelled:
            classes = (raw(int64(labels)) for _, labels in source.labels())
            members.append(("arr_1", (source.count,), "int64", classes))
        if source.partial:
            members.append(
                ("ids", (source.count,), "int64", (raw(int64(ids)) for ids in source.ids()))
            )
        with open(out, "wb") as file:
            archive(file, members)
