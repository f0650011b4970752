"""Writes grid.png: a contact sheet of the first pictures of a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import images
from .folder import Folder
from .formats import FORMATS
from .records import records

MOST = 256  # pictures on the sheet


def write_grid(folder: Folder, classes: Sequence[str]) -> bool:
    """Writes grid.png, with a row per class where there are classes.

    Returns False, and writes nothing, where the samples are no pictures.
    """
    arrays: list[np.ndarray] = []
    labels: list[int] | None = []
    for record in records(folder.path):
        if (
            record["dtype"] != "uint8"
            or record["shape"][-1] not in (1, 3)
            or len(record["shape"]) != 4
        ):
            return False
        arrays.append(FORMATS[folder.spec.format].read(folder.path, record))
        labels = None if record["labels"] is None or labels is None else labels + record["labels"]
        if sum(map(len, arrays)) >= MOST:
            break
    if not arrays:
        return False
    pictures = np.concatenate(arrays)[:MOST]
    sheet = images.grid(pictures, None if labels is None else np.array(labels[:MOST]), classes)
    folder.write("grid.png", lambda file: sheet.save(file, format="PNG"))
    return True
