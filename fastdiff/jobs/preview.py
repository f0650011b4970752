"""Writes grid.png: a contact sheet of the first pictures of a dataset, or its first points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .. import images
from ..pretrained import read_config
from .folder import Folder
from .formats import FORMATS
from .records import records
from .spec import RunSpec

MOST = 256  # pictures on the sheet, and fewer where they are large:
PIXELS = 1 << 22  # of all of them together, and at least one picture
POINTS = 10_000  # of the plane


def write_grid(folder: Folder, classes: Sequence[str]) -> bool:
    """Writes grid.png, with a row per class where there are classes (see `images.grid`).

    Returns False, and writes nothing, where the samples are neither pictures nor points of the
    plane.
    """
    fmt = FORMATS[folder.spec.format]
    if folder.spec.model["shape"] == [2]:
        parts: list[np.ndarray] = []
        for record in records(folder.path):
            parts.append(fmt.read(folder.path, record))
            if sum(map(len, parts)) >= POINTS:
                break
        return _write(folder, images.scatter(np.concatenate(parts)[:POINTS])) if parts else False
    arrays: list[np.ndarray] = []
    most = MOST
    labels: list[int] | None = []
    for record in records(folder.path):
        if (
            record["dtype"] != "uint8"
            or record["shape"][-1] not in (1, 3)
            or len(record["shape"]) != 4
        ):
            return False
        arrays.append(fmt.read(folder.path, record))
        labels = None if record["labels"] is None or labels is None else labels + record["labels"]
        height, width = record["shape"][1:3]
        area = height * width * images.enlarged(height) ** 2
        most = min(MOST, max(1, PIXELS // area))
        if sum(map(len, arrays)) >= most:
            break
    if not arrays:
        return False
    pictures = np.concatenate(arrays)[:most]
    return _write(
        folder,
        images.grid(pictures, None if labels is None else np.array(labels[:most]), classes),
    )


def class_names(spec: RunSpec) -> list[str]:
    """Returns the names of the classes in the config of a run's model folder, if it is here.

    No model is opened; code that names classes is not run.
    """
    try:
        names = read_config(spec.model["name"]).get("data", {}).get("classes", [])
    except (ValueError, OSError, AttributeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _write(folder: Folder, picture: Image.Image) -> bool:
    folder.write("grid.png", lambda file: picture.save(file, format="PNG"))
    return True
