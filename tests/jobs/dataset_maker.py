"""Writes datasets without a network: spec.json, data files and records of known samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.jobs.formats import FORMATS, Block, pixels_sha256
from fastdiff.jobs.records import record_name, with_checksum

SPEC_HASH = "5bec" * 16
SHAPES = {"grey": (5, 4, 1), "rgb": (4, 6, 3), "rgba": (3, 3, 4), "latents": (4, 2, 3)}
DTYPES = {kind: "float32" if kind == "latents" else "uint8" for kind in SHAPES}


def kinds_of(format: str) -> list[str]:
    """The kinds of samples in SHAPES that a format stores."""
    return [kind for kind in SHAPES if FORMATS[format].holds(SHAPES[kind], DTYPES[kind])]


def samples(kind: str, ids: range, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns the samples of these ids; sample i is a function of i alone."""
    size = shape or SHAPES[kind]
    each = math.prod(size)
    start = np.array(ids, dtype=np.uint64)[:, None] * np.uint64(each)
    words = (
        (start + np.arange(each, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    ) >> np.uint64(40)  # 24 bits
    if kind == "latents":
        return (
            ((words.astype(np.float64) - 2**23) / 2**21).astype(np.float32).reshape(len(ids), *size)
        )
    return (words & np.uint64(255)).astype(np.uint8).reshape(len(ids), *size)


def classes(ids: range) -> list[int]:
    return [(3 * i + 1) % 10 for i in ids]


def block(
    kind: str,
    ids: range,
    *,
    unit: int = 0,
    labelled: bool = True,
    seed: int = 11,
    shape: tuple[int, ...] | None = None,
) -> Block:
    return Block(
        unit, ids.start, seed, samples(kind, ids, shape), classes(ids) if labelled else None
    )


def write(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def commit(
    folder: Path, format: str, made: Block, provenance: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes a unit's files, then its record, and returns the record."""
    files = []
    for name, content in FORMATS[format].files(made, provenance or {"recipe": SPEC_HASH}):
        write(folder, name, content)
        files.append(
            {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        )
    record = with_checksum(
        {
            "unit": made.unit,
            "first": made.first,
            "stop": made.first + len(made.array),
            "seed": made.seed,
            "labels": None if made.labels is None else list(made.labels),
            "shape": list(made.array.shape),
            "dtype": made.array.dtype.name,
            "pixels": pixels_sha256(made.array),
            "files": files,
            "made": {"host": "here", "seconds": 0.5},
        }
    )
    write(folder, record_name(made.unit), json.dumps(record).encode())
    return record


def dataset(
    folder: Path,
    kind: str = "grey",
    *,
    first: int = 5,
    last: int = 30,
    unit: int = 8,
    format: str = "npy",
    labelled: bool = True,
    shape: tuple[int, ...] | None = None,
    seed: int = 11,
) -> Path:
    """Writes a dataset of the ids first … last; units are the blocks at multiples of `unit`."""
    spec = {
        "ids": [first, last],
        "unit": unit,
        "seed": seed,
        "format": format,
        "hash": SPEC_HASH,
        "plan": {"hash": "91a7" * 16, "table": []},
        "machine": {"fastdiff": "0.1.0"},
    }
    write(folder, "spec.json", json.dumps(spec).encode())
    for u in range(first // unit, last // unit + 1):
        ids = range(max(u * unit, first), min((u + 1) * unit, last + 1))
        commit(folder, format, block(kind, ids, unit=u, labelled=labelled, seed=seed, shape=shape))
    return folder
