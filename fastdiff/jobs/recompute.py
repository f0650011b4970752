"""Recomputes chosen samples of a dataset and compares them with the stored ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..pretrained.files import write_atomically
from .folder import Folder
from .formats import FORMATS
from .job import Job
from .machine import repeatable
from .records import read_record


def recompute(
    folder: Folder, job: Job, first: int, last: int, out: Path
) -> Iterator[tuple[Path, int, bool | None]]:
    """Writes the samples first … last to `out`: pictures as PNG, other data as .npy.

    Their whole units are computed, since a sample's last bits depend on its batch.

    Yields (file, sample id, whether the dataset holds the same sample; None where it does not hold
    that sample). Raises ValueError for ids outside the run and for samples that are not finite.
    """
    units = folder.spec.units
    out.mkdir(parents=True, exist_ok=True)
    with repeatable(folder.spec.threads):
        for unit in range(units.unit_of(first), units.unit_of(last) + 1):
            drawn, failure = job.diagnose(unit, trajectory=False)
            if failure is not None:
                raise ValueError(
                    f"fastdiff.jobs: expected finite samples in unit {unit}, got others: {failure}."
                )
            array, ids = drawn.array.cpu().numpy(), units.ids(unit)
            try:
                present = FORMATS[folder.spec.format].read(
                    folder.path, read_record(folder.record_path(unit), unit)
                )
            except (FileNotFoundError, ValueError):
                present = None
            for sample in range(max(first, ids.start), min(last + 1, ids.stop)):
                index = sample - ids.start
                same = None if present is None else np.array_equal(array[index], present[index])
                yield _write(out, sample, array[index]), sample, same


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
