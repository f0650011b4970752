"""Samples of a dataset made again, alone: their whole units are computed and the rest is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..pretrained.files import write_atomically
from .folder import Folder
from .formats import FORMATS
from .job import Job
from .machine import settled
from .records import read_record


def recompute(
    folder: Folder, job: Job, first: int, last: int, out: Path
) -> Iterator[tuple[Path, int, bool | None]]:
    """Writes the samples first … last as PNG, or as .npy where they are no pictures.

    Yields (file, sample id, whether the dataset has the same, None where it does not have the
    sample). Raises ValueError for ids outside the run and for samples that are not finite.
    """
    units = folder.spec.units
    out.mkdir(parents=True, exist_ok=True)
    with settled(folder.spec.threads):
        for unit in range(units.of(first), units.of(last) + 1):
            drawn, failure = job.diagnose(unit)
            if failure is not None:
                raise ValueError(
                    f"fastdiff.jobs: expected finite samples in unit {unit}, got none: {failure}."
                )
            array, ids = drawn.array.cpu().numpy(), units.ids(unit)
            try:
                kept = FORMATS[folder.spec.format].read(
                    folder.path, read_record(folder.record_path(unit), unit)
                )
            except (FileNotFoundError, ValueError):
                kept = None
            for sample in range(max(first, ids.start), min(last + 1, ids.stop)):
                one = array[sample - ids.start]
                same = None if kept is None else bool(np.array_equal(one, kept[sample - ids.start]))
                yield _write(out, sample, one), sample, same


def _write(out: Path, sample: int, array: np.ndarray) -> Path:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (1, 3):
        path = out / f"{sample:06d}.png"
        picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        write_atomically(path, lambda p: picture.save(p, format="PNG"))
        return path
    path = out / f"{sample:06d}.npy"

    def save(p: Path) -> None:
        with open(p, "wb") as file:
            np.save(file, array)

    write_atomically(path, save)
    return path
