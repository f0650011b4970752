"""WebDataset: tar archives in which the members of one sample follow each other.

They share a name up to the first dot: 000000001234.png (or .npy for data that is no picture), .cls
with the class as decimal text, .json with the origin of the sample. Headers are POSIX ustar with
owner 0, mode 0644 and date 0, so that the bytes depend on the samples alone.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import npy, png
from .base import Format
from .block import (
    Block,
    Source,
    UnexpectedContent,
    compact,
    content,
    decoded,
    facts,
    is_picture,
    shard_name,
)

END = bytes(2 * tarfile.BLOCKSIZE)


def _empty_header() -> bytes:
    info = tarfile.TarInfo()  # date, owner and names are 0 and empty
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


HEADER = _empty_header()
NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # of the header


def member(name: str, data: bytes) -> bytes:
    """Returns a member of a tar archive: header, content, zeros up to a multiple of 512 bytes.

    The header is a copy of a constant one with three fields filled in: to build it with tarfile
    takes longer than to compress a small picture.
    """
    head = bytearray(HEADER)
    head[NAME] = name.encode("ascii").ljust(100, b"\0")
    head[SIZE] = b"%011o\0" % len(data)
    head[CHECKSUM] = b" " * 8  # the sum counts its own field as spaces
    head[CHECKSUM] = b"%06o\0 " % sum(head)
    assert len(head) == tarfile.BLOCKSIZE
    return b"".join((head, data, bytes(-len(data) % tarfile.BLOCKSIZE)))


def members(block: Block, array: np.ndarray, provenance: Mapping[str, str]) -> Iterator[bytes]:
    """Yields the members of each sample of a block, joined."""
    picture = is_picture(array.shape[1:], array.dtype.name)
    for index, sample_id in enumerate(block.ids):
        key = f"{sample_id:012d}"
        data = png.encode(array[index]) if picture else npy.encode(array[index])
        pieces = [member(f"{key}.{'png' if picture else 'npy'}", data)]
        if block.labels is not None:
            pieces.append(member(f"{key}.cls", str(int(block.labels[index])).encode("ascii")))
        pieces.append(member(f"{key}.json", compact(facts(block, index, provenance))))
        yield b"".join(pieces)


class WebDataset(Format):
    name = "webdataset"
    summary = "tar archives"
    folder = True
    per_shard = 1000

    def encoder(self, shape: Sequence[int], dtype: str) -> str | None:
        return png.encoder() if is_picture(shape, dtype) else None

    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        array = self.checked(block)
        yield shard_name(block.unit, "tar"), b"".join([*members(block, array, provenance), END])

    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        path, data = content(folder, record)
        shape, dtype = record["shape"], record["dtype"]

        def samples() -> np.ndarray:
            suffix = ".png" if is_picture(shape[1:], dtype) else ".npy"
            array = np.empty(shape, dtype=dtype)
            count = 0
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                for info in tar:
                    if not info.name.endswith(suffix):
                        continue
                    file = tar.extractfile(info)
                    if file is None:
                        raise UnexpectedContent(f"no file as {info.name!r}")
                    sample = file.read()
                    array[count] = (
                        png.decode(sample, shape[1:])
                        if suffix == ".png"
                        else npy.decode(sample, shape[1:], dtype)
                    )
                    count += 1
            if count != len(array):
                raise UnexpectedContent(f"{count} samples")
            return array

        return decoded(path, "a tar archive", samples, shape, dtype)

    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """Writes archives 000000.tar, 000001.tar, … of `per_shard` samples; the last has fewer."""
        samples = (
            s for block in source.blocks() for s in members(block, block.array, source.provenance)
        )
        for shard in range(-(-source.count // per_shard)):
            with open(out / f"{shard:06d}.tar", "wb") as file:
                file.writelines(itertools.islice(samples, per_shard))
                file.write(END)
