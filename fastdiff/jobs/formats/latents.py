"""safetensors for latents: the tensors `latents` [n, …] float32 and `labels` [n] int64.

The labels are the classes of labelled samples. The file is the length of a JSON header (8 bytes),
the header, the tensors. This module writes the header, because the safetensors library writes the
metadata's keys in an order that changes from one process to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from .base import Format
from .block import (
    Block,
    Source,
    UnexpectedContent,
    compact,
    content,
    decoded,
    int64,
    raw,
    shard_name,
    size_of,
)

NAMES = {"float32": "F32", "int64": "I64", "uint8": "U8"}


def header(tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """Returns length and header for tensors (name, dtype, shape), which follow in this order.

    Pass the widest types first, so that every tensor is aligned to its item size.
    """
    entries: dict[str, Any] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}}
    start = 0
    for name, dtype, shape in tensors:
        stop = start + size_of(shape, dtype)
        dims = [int(n) for n in shape]
        entries[name] = {"dtype": NAMES[dtype], "shape": dims, "data_offsets": [start, stop]}
        start = stop
    text = compact(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Latents(Format):
    name = "safetensors"
    summary = "one file of latents"
    float_samples = True
    expects = "float32 latents"

    def holds(self, shape: Sequence[int], dtype: str) -> bool:
        return dtype == "float32"

    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        array = self.checked(block)
        tensors: list[tuple[str, str, Sequence[int]]] = [("latents", "float32", array.shape)]
        pieces = [raw(array)]
        if block.labels is not None:
            tensors.insert(0, ("labels", "int64", (len(array),)))
            pieces.insert(0, raw(int64(block.labels)))
        metadata = {**provenance, "first": str(block.first), "seed": str(block.seed)}
        yield shard_name(block.unit, "safetensors"), b"".join((header(tensors, metadata), *pieces))

    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        path, data = content(folder, record)

        def latents() -> np.ndarray:
            tensors = safetensors.numpy.load(data)
            if "latents" not in tensors:
                raise UnexpectedContent(f"the tensors {sorted(tensors)}")
            return tensors["latents"]

        return decoded(path, "safetensors", latents, record["shape"], record["dtype"])

    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """Writes one file; with ids missing, the tensor `ids` [N] int64 lists those present."""
        tensors: list[tuple[str, str, Sequence[int]]] = [
            ("latents", "float32", (source.count, *source.shape))
        ]
        pieces = [(raw(block.array) for block in source.blocks())]
        if source.partial:
            tensors.insert(0, ("ids", "int64", (source.count,)))
            pieces.insert(0, (raw(int64(ids)) for ids in source.ids()))
        if source.labelled:
            tensors.insert(0, ("labels", "int64", (source.count,)))
            pieces.insert(0, (raw(int64(labels)) for _, labels in source.labels()))
        metadata = {**source.provenance, "seed": str(source.seed)}
        with open(out, "wb") as file:
            file.write(header(tensors, metadata))
            for pieces_of_tensor in pieces:
                file.writelines(pieces_of_tensor)
