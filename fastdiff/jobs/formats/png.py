"""A tree of PNG pictures with the names of EDM's `generate.py --subdirs`.

001000/001234.png is sample 1234. EDM's ids are its seeds; here the id numbers the sample within the
run's seed, and the picture's text holds both. EDM's loader walks the tree and sorts by name, which
is the order of the ids up to 999,999. From 1,000,000 on the names are longer and sort differently,
so read the id from the name there.

Pixels are exact. The compressed bytes depend on the deflate library inside Pillow (zlib or zlib-ng)
and its version, not on the processor; `encoder` names both.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from .base import Format
from .block import (
    Block,
    Source,
    UnexpectedContent,
    contents,
    decoded,
    facts,
    is_picture,
)

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# compression: for 512 x 512 pictures, level 6 saves 15 % of the bytes and takes four times as long
LEVEL = 1


def name_of(sample_id: int) -> str:
    """001000/001234.png of sample 1234."""
    return f"{sample_id - sample_id % 1000:06d}/{sample_id:06d}.png"


def encoder() -> str:
    """Returns the versions of Pillow and its deflate library: `Pillow 13.0.0 (zlib-ng 2.3.3)`."""
    library = "zlib-ng" if features.check("zlib_ng") else "zlib"
    return (
        f"Pillow {PIL.__version__} ({library}"
        f" {features.version('zlib_ng' if library == 'zlib-ng' else 'zlib')})"
    )


def encode(picture: np.ndarray, text: Mapping[str, Any] | None = None) -> bytes:
    """Returns a picture [H, W, C] uint8 as PNG, with text chunks in the mapping's order."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, str(value))
    file = io.BytesIO()
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image.save(file, format="PNG", compress_level=LEVEL, pnginfo=info)
    return file.getvalue()


def decode(data: bytes, shape: Sequence[int]) -> np.ndarray:
    """Returns the picture of a PNG file, after comparing its size before decompression."""
    height, width, channels = shape
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.size != (width, height) or image.mode != MODES[channels]:
            raise UnexpectedContent(f"{image.mode} of {image.width} x {image.height} pixels")
        return np.asarray(image).reshape(height, width, channels)


class Png(Format):
    name = "png"
    summary = "a tree as EDM writes it, with dataset.json"
    folder = True
    expects = "pictures [H, W, C] uint8 with 1-4 channels"

    def holds(self, shape: Sequence[int], dtype: str) -> bool:
        return is_picture(shape, dtype)

    def encoder(self, shape: Sequence[int], dtype: str) -> str | None:
        return encoder()

    def owns(self, name: str) -> bool:
        return name.isdecimal()

    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        array = self.checked(block)
        for index, sample_id in enumerate(block.ids):
            yield name_of(sample_id), encode(array[index], facts(block, index, provenance))

    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        shape = record["shape"]
        array = np.empty(shape, dtype=np.uint8)
        for index, (path, data) in enumerate(contents(folder, record, shape[0])):
            array[index] = decoded(
                path, "a picture", partial(decode, data, shape[1:]), shape[1:], "uint8"
            )
        return array

    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """Writes the tree, and `dataset.json` with the classes, which EDM's training reads."""
        parent = ""
        for block in source.blocks():
            for name, data in self.files(block, source.provenance):
                if name.partition("/")[0] != parent:
                    parent = name.partition("/")[0]
                    (out / parent).mkdir(exist_ok=True)
                (out / name).write_bytes(data)
        if source.labelled:
            # {"labels": [["000000/000000.png", 3], …]}, entry by entry
            with open(out / "dataset.json", "w", encoding="ascii", newline="\n") as file:
                separator = '{"labels": [\n'
                for ids, labels in source.labels():
                    for sample_id, label in zip(ids, labels, strict=True):
                        file.write(separator + json.dumps([name_of(sample_id), int(label)]))
                        separator = ",\n"
                file.write("\n]}\n")
