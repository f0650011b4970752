"""Readers of exports that are not fastdiff's, one per format."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
from dataset_maker import kinds_of
from PIL import Image

from fastdiff.jobs.formats import FORMATS

# names of exports
SUFFIX = {name: "set" if fmt.folder else f"set.{name}" for name, fmt in FORMATS.items()}
PICTURE_FORMATS = [name for name in FORMATS if "grey" in kinds_of(name)]


def tree(folder: Path) -> dict[str, bytes]:
    """Returns {path: content} of every file below the folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Exported(NamedTuple):
    """What an export holds; None for labels and ids that it does not hold."""

    samples: np.ndarray
    labels: list[int] | None
    ids: list[int] | None


def read(format: str, out: Path) -> Exported:
    """Returns what an export holds, by a reader that is not fastdiff's."""
    return READERS[format](out)


def read_npz(out: Path) -> Exported:
    with np.load(out) as file:
        labels, ids = (file[k].tolist() if k in file else None for k in ("arr_1", "ids"))
        return Exported(file["arr_0"], labels, ids)


def read_npy(out: Path) -> Exported:
    return Exported(np.load(out, mmap_mode="r"), None, None)


def read_safetensors(out: Path) -> Exported:
    tensors = safetensors.torch.load_file(out)
    labels, ids = (tensors[k].tolist() if k in tensors else None for k in ("labels", "ids"))
    return Exported(tensors["latents"].numpy(), labels, ids)


def read_png(out: Path) -> Exported:
    names, pictures, labels = edm_dataset(out)
    return Exported(np.stack(pictures), labels, [int(Path(name).stem) for name in names])


def read_webdataset(out: Path) -> Exported:
    found: list[np.ndarray] = []
    labels: list[int] = []
    ids: list[int] = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path, "r|") as tar:
            for info in tar:
                data = tar.extractfile(info).read()  # type: ignore[union-attr]
                if info.name.endswith(".png"):
                    picture = np.asarray(Image.open(io.BytesIO(data)))
                    found.append(picture[:, :, None] if picture.ndim == 2 else picture)
                if info.name.endswith(".npy"):
                    found.append(np.load(io.BytesIO(data)))
                if info.name.endswith(".cls"):
                    labels.append(int(data))
                if info.name.endswith(".json"):
                    ids.append(json.loads(data)["sample_id"])
    return Exported(np.stack(found), labels or None, ids)


READERS: dict[str, Callable[[Path], Exported]] = {
    "npy": read_npy,
    "npz": read_npz,
    "png": read_png,
    "webdataset": read_webdataset,
    "safetensors": read_safetensors,
}


def edm_dataset(path: Path) -> tuple[list[str], list[np.ndarray], list[int] | None]:
    """Reads a folder as ImageFolderDataset of NVlabs/edm does: (names, pictures, classes).

    It takes every file with an extension that Pillow knows, sorted as text, and the classes from
    dataset.json by the picture's name.
    """
    Image.init()
    every = {
        os.path.relpath(os.path.join(root, n), path)
        for root, _, found in os.walk(path)
        for n in found
    }
    names = sorted(n for n in every if os.path.splitext(n)[1].lower() in Image.EXTENSION)
    pictures = [np.array(Image.open(path / n)) for n in names]
    pictures = [p[:, :, np.newaxis] if p.ndim == 2 else p for p in pictures]
    if "dataset.json" not in every:
        return names, pictures, None
    labels = dict(json.loads((path / "dataset.json").read_text())["labels"])
    return names, pictures, [labels[n.replace("\\", "/")] for n in names]


def adm_batches(path: Path, batch: int) -> Iterator[np.ndarray]:
    """Streams arr_0 as open_npz_array of guided-diffusion's evaluator does.

    The member is opened in place and its header is read, then batches of bytes.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file, "r") as archive:
        assert "arr_0.npy" in archive.namelist()
        with archive.open("arr_0.npy", "r") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            assert not fortran and not dtype.hasobject
            for start in range(0, shape[0], batch):
                n = min(batch, shape[0] - start)
                data = member.read(n * int(np.prod(shape[1:])) * dtype.itemsize)
                yield np.frombuffer(data, dtype=dtype).reshape(n, *shape[1:])
