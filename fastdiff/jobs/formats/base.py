"""The base class of formats: what a format declares about itself, and what it implements.

Everything that jobs, exports, checks and the command line ask about a format is an attribute or a
method here, so that a new format is one module with one subclass, and one entry of FORMATS in
fastdiff.jobs.formats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .block import Block, Source, stored


class Format(ABC):
    """One way to store samples in files.

    Formats have no state. The bytes that they write are a function of the arguments, and of the
    library named by `encoder`, alone: they hold no dates, owners, host names or orders of dicts.

    Attributes:
        name: the value of `--format`.
        summary: what an export is, for `fastdiff export --help`.
        folder: an export is a folder of files; otherwise one file.
        float_samples: a run in this format keeps the network's float32 samples. It neither decodes
            them nor converts them to 8-bit pictures.
        export_labels: an export holds the classes of labelled samples.
        export_ids: an export says which ids it holds. Without that, a dataset with missing units
            cannot be exported.
        per_shard: samples in each archive of an export, for formats that divide it, where the user
            names no other number; None for formats that do not.
        expects: the samples that `holds` accepts, as error messages name them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    folder: ClassVar[bool] = False
    float_samples: ClassVar[bool] = False
    export_labels: ClassVar[bool] = True
    export_ids: ClassVar[bool] = True
    per_shard: ClassVar[int | None] = None
    expects: ClassVar[str] = "samples"

    def holds(self, shape: Sequence[int], dtype: str) -> bool:
        """Returns whether samples of this shape and type can be stored."""
        return True

    def encoder(self, shape: Sequence[int], dtype: str) -> str | None:
        """Returns the library that the bytes depend on, as `name version`.

        None where the bytes are the same with any version of any library.
        """
        return None

    def owns(self, name: str) -> bool:
        """Returns whether a name in a dataset's top folder is of this format's data files.

        The folder `shards` belongs to every format.
        """
        return False

    @abstractmethod
    def files(self, block: Block, provenance: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        """Yields (name, content) of each data file of a unit.

        Names are relative to the dataset's folder and '/'-separated. Begin with `self.checked`.
        """

    @abstractmethod
    def read(self, folder: Path, record: Mapping[str, Any]) -> np.ndarray:
        """Returns block.array again (possibly read-only).

        Reads the record's files with `contents`, which leaves out those of trajectories, and
        record["shape"] and record["dtype"]. Raises FileNotFoundError or
        ValueError in one sentence that names the file. The content is checked as far as the format
        allows; the caller compares `pixels_sha256` with the record.
        """

    @abstractmethod
    def export(self, out: Path, source: Source, per_shard: int) -> None:
        """Writes all samples to the new file, or into the empty folder, `out`.

        Keeps one unit in memory. per_shard: samples in each archive, for formats with archives.
        """

    def check(self, shape: Sequence[int], dtype: str) -> None:
        """Raises ValueError in one sentence for samples that this format cannot store."""
        if not self.holds(shape, dtype):
            raise ValueError(
                f"fastdiff.jobs: expected {self.expects} for the format {self.name}, got {dtype}"
                f" {list(shape)}. Use npy, which stores any samples."
            )

    def checked(self, block: Block) -> np.ndarray:
        """Returns the block's array as files hold it, after the checks that all formats make."""
        array = stored(block.array)
        self.check(array.shape[1:], array.dtype.name)
        if block.labels is not None and len(block.labels) != len(array):
            raise ValueError(
                f"fastdiff.jobs: expected {len(array)} labels in unit {block.unit}, one per sample,"
                f" got {len(block.labels)}."
            )
        return array

    def sample_kind(
        self, shape: Sequence[int], *, decoded: bool, latents: bool
    ) -> tuple[tuple[int, ...], str]:
        """Returns (shape, dtype) of a sample of a run in this format, as it is stored.

        Args:
            shape: of the network's samples.
            decoded: a decoder turns them into pictures. Their size is not known before the first
                one; (1, 1, 3) represents it.
            latents: they are an autoencoder's latents. Without a decoder they are no pictures,
                whatever their number of channels.
        """
        shape = tuple(shape)
        if self.float_samples:
            return shape, "float32"
        if decoded:
            return (1, 1, 3), "uint8"
        if not latents and len(shape) == 3 and shape[0] in (1, 3):
            return (shape[1], shape[2], shape[0]), "uint8"
        return shape, "float32"
