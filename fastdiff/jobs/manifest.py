"""The digest of a dataset, and its manifest: a line per unit, made from the records at the end.

The digest is SHA-256 over a line `first stop pixels-hash` per unit, in order. It depends on the
samples alone, not on the format, the times or the history of the run.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, BinaryIO

from ..outside import open_regular, parse_json
from .folder import Folder
from .records import LARGEST, intact, records, with_checksum

MANIFEST = "manifest.jsonl"


class Digest:
    """The digest of a dataset; `add` takes its records in order."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256(b"fastdiff dataset 1\n")

    def add(self, record: dict[str, Any]) -> None:
        self._sum.update(f"{record['first']} {record['stop']} {record['pixels']}\n".encode())

    @property
    def hex(self) -> str:
        return self._sum.hexdigest()


def write_manifest(folder: Folder) -> str:
    """Writes the manifest of a complete dataset and returns the digest."""
    digest, count, images = Digest(), 0, 0

    def write(file: BinaryIO) -> None:
        nonlocal count, images
        lines = hashlib.sha256()
        for record in records(folder.path):
            if record["unit"] not in folder.spec.units.numbers:
                continue
            digest.add(record)
            count, images = count + 1, images + record["stop"] - record["first"]
            entry = {
                key: record[key] for key in ("unit", "first", "stop", "seed", "pixels", "files")
            }
            line = json.dumps(entry).encode() + b"\n"
            lines.update(line)
            file.write(line)
        total = {"spec": folder.spec.hash, "units": count, "images": images, "digest": digest.hex}
        file.write(
            json.dumps(with_checksum({**total, "lines": lines.hexdigest()})).encode() + b"\n"
        )

    folder.write(MANIFEST, write)
    return digest.hex


def has_manifest(folder: Folder) -> bool:
    """Returns whether there is an intact manifest of all units."""
    lines, line = hashlib.sha256(), b""
    try:
        with open_regular(folder.path / MANIFEST) as file:
            while following := file.readline(LARGEST):
                lines.update(line)
                line = following
        last = parse_json(line)
        found = last["spec"], last["units"], last["lines"]
        return intact(last) and found == (
            folder.spec.hash,
            len(folder.spec.units),
            lines.hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
