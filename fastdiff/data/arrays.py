"""Data sets in arrays: npy, npz with ADM's keys, IDX files. Memory-mapped where the file allows it.

Pictures are uint8: [N, H, W], [N, H, W, C] as ADM's, or [N, C, H, W], with C in 1, 3, 4 (alpha).
Floating-point arrays [N, …] are continuous data, used as they are.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ..outside import open_regular, shown
from . import labels as label_files
from .fashion_mnist import LARGEST, read_idx
from .listing import Listing, Numbers, identity, split_of
from .options import WHERE, Options
from .paths import content_offset

CHANNELS = (1, 3, 4)
PICTURES, LABELS = ("arr_0", "images"), ("arr_1", "labels")  # keys of an npz
_SAMPLES, _SAMPLE = 256, 4096  # parts of a file that its digest reads, and their bytes


class Rows:
    """The rows of an array.

    Args:
        array: [N, …].
        again: makes it again in a process that is not forked, which would else get a copy of a
            mapped file; None copies it.
    """

    def __init__(self, array: np.ndarray, again: Callable[[], np.ndarray] | None = None):
        self.array, self._again = array, again

    def read(self, example: int) -> np.ndarray:
        return np.ascontiguousarray(self.array[example])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"array": None} if self._again else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._again:
            self.array = self._again()


class Vectors:
    """A split of continuous data in an array [N, …], see `Data`: x0 is a row as float32."""

    levels = None

    def __init__(
        self,
        listing: Listing,
        split: str,
        options: Options,
        origin: Mapping[str, Any] | None = None,
    ):
        used = [k for k in options.stored() if k not in ("label_file", "test_share")]
        if used:
            raise ValueError(
                f"{WHERE}: expected no {used[0]} for {listing.where}, which holds continuous data,"
                f" got {getattr(options, used[0])}. Leave it out."
            )
        self._rows: Rows = listing.facts["rows"]
        self.origin, self.classes = dict(origin or {}), listing.classes
        self._chosen = torch.from_numpy(split_of(listing, split, options))
        labels = listing.labels
        self.labels = torch.from_numpy(
            np.zeros(self.examples, np.int64) if labels is None else labels[self._chosen.numpy()]
        )
        self.name = (
            f"{listing.kind} {listing.base} {split} ({self.examples:,} of shape"
            f" {list(self.shape)}, {identity(listing, self._chosen.numpy(), options)})"
        )

    @property
    def examples(self) -> int:
        return len(self._chosen)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._rows.array.shape[1:])

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Returns (x0 float32 [B, …], labels [B]). The seed and the epoch change nothing.

        Raises ValueError for rows that are not finite.
        """
        rows = np.asarray(self._rows.array[self._chosen[index].numpy()], dtype=np.float32)
        if not np.isfinite(rows).all():
            finite = np.isfinite(rows.reshape(len(rows), -1)).all(1)
            first = int(self._chosen[index][int(np.flatnonzero(~finite)[0])])
            raise ValueError(
                f"{WHERE}: expected finite numbers in {self.name}, got others in row {first}."
            )
        return torch.from_numpy(rows), self.labels[index]


def array_file(path: Path, options: Options) -> Listing:
    """Returns the listing of an npy or npz file. Raises ValueError in one sentence."""
    array, labels = _content(path, options)
    labels = None if options.label_file == "none" else labels
    if options.label_file not in (None, "none"):
        labels = map_npy(Path(options.label_file), "a label file, as .npy [N],")
    made = listing_of(array, labels, path.suffix[1:], path, file_digest(path), options)
    made.facts["rows"]._again = partial(_again, path, options)
    return made


def idx_files(path: Path, options: Options) -> Listing:
    """Returns the listing of an IDX file of images, and the labels in the same folder.

    For a folder: of its `train` and `t10k` (or `test`) files, which are its splits. Images are
    [N, H, W], [N, H, W, C] or [N, C, H, W]. Raises ValueError in one sentence.
    """
    files = {"": path} if path.is_file() else idx_in(path)
    images, labels, parts = [], [], []
    for part, file in files.items():
        images.append(read_idx(file))
        parts += [part] * len(images[-1])
        of_labels = _labels_of(file)
        if of_labels is not None and options.label_file != "none":
            labels.append(read_idx(of_labels))
    if any(i.shape[1:] != images[0].shape[1:] for i in images) or len(labels) not in (
        0,
        len(images),
    ):
        _refuse(path, "images of one size, and labels for all or none", "others")
    array = images[0] if len(images) == 1 else np.concatenate(images)
    joined = None if not labels else np.concatenate(labels).astype(np.int64)
    digest = "".join(file_digest(f) for f in files.values())
    made = listing_of(array, joined, "idx", path, digest, options)
    if any(parts):
        made.parts = parts
    return made


def _content(path: Path, options: Options) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the examples of an npy or npz file, and the labels that an npz has."""
    if path.suffix != ".npz":
        return map_npy(path), None
    arrays = _npz(path, options)
    array = _first(arrays, PICTURES)
    if array is None:
        _refuse(path, "an array arr_0 or images", f"{sorted(arrays)[:4] or 'none'}")
    return array, _first(arrays, LABELS)


def _again(path: Path, options: Options) -> np.ndarray:
    array, _ = _content(path, options)
    return channels_last(array, path) if array.dtype == np.uint8 else array


def idx_in(folder: Path) -> dict[str, Path]:
    """Returns {split: its IDX file of images} of a folder; nothing for any other folder."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*images*idx*-ubyte*")):
        part = file.name.split("-", 1)[0].split(".", 1)[0]
        name = "test" if part in ("t10k", "test") else part
        if name in ("train", "test") and _stem(file) is not None:
            found.setdefault(name, file)
    return found if "train" in found else {}


def listing_of(
    array: np.ndarray,
    labels: np.ndarray | None,
    kind: str,
    path: Path,
    digest: str,
    options: Options,
) -> Listing:
    """Returns the listing of an array of pictures or of continuous data."""
    if not len(array) or array.size == 0:
        _refuse(path, "examples", f"an array {list(array.shape)}")
    if array.dtype == np.uint8:
        array = channels_last(array, path)
    elif array.dtype.kind != "f" or array.ndim < 2:
        expected = "pictures as uint8 [N, H, W, C], or floating-point rows [N, …]"
        _refuse(path, expected, f"{array.dtype} {list(array.shape)}")
    numbers: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if labels is not None:
        if labels.shape != (len(array),) or labels.dtype.kind not in "iu":
            got = f"{labels.dtype} {list(labels.shape)}"
            _refuse(path, f"whole numbers [{len(array)}] as labels", got)
        numbers, classes = label_files.numbered(labels.tolist(), None, str(path))
    row = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
    names, sizes = Numbers(len(array)), [row] * len(array)
    rows = Rows(array)
    made = Listing(kind, path.resolve().name, names, sizes, rows, numbers, classes)
    made.digest = f"{array.dtype} {list(array.shape)} {digest}"
    made.facts["rows"] = rows
    return made


def channels_last(array: np.ndarray, path: Path) -> np.ndarray:
    """Returns pictures as [N, H, W, C], a view. Raises ValueError for other shapes."""
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and array.shape[-1] in CHANNELS:
        return array
    if array.ndim == 4 and array.shape[1] in CHANNELS:
        return array.transpose(0, 2, 3, 1)
    _refuse(path, "pictures [N, H, W, C] with C in 1, 3, 4", f"uint8 {list(array.shape)}")


def file_digest(path: Path) -> str:
    """Returns a hash of a file's size and of parts of it, evenly spread: the whole may be large."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        found = hashlib.sha256(str(size).encode())
        for k in range(_SAMPLES):
            at = (
                (size - _SAMPLE) * k // (_SAMPLES - 1) if size > _SAMPLES * _SAMPLE else k * _SAMPLE
            )
            found.update(os.pread(file.fileno(), _SAMPLE, at))
    return found.hexdigest()


def map_npy(path: Path, what: str = "an npy file") -> np.ndarray:
    """Memory-maps an npy file.

    what: it should be, for messages. Raises FileNotFoundError, or ValueError for other content.
    """
    try:
        open_regular(path).close()
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{WHERE}: expected {what} in {shown(path)}, got none. Check its path."
        ) from None
    except Exception as error:  # numpy raises nearly anything on damaged bytes
        _refuse(path, what, shown((str(error).splitlines() or [""])[0])[:160])


def _npz(path: Path, options: Options) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz that data sets use: memory-mapped where they are not packed."""
    found: dict[str, np.ndarray] = {}
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as opened:
            for info in opened.infolist():
                key = info.filename.removesuffix(".npy")
                if key not in PICTURES + LABELS:
                    continue
                limit = min(options.cache_mib << 20, LARGEST)
                if info.compress_type == zipfile.ZIP_STORED and key in PICTURES:
                    found[key] = _mapped(path, file, info)
                elif info.file_size > limit:
                    raise ValueError(
                        f"{info.file_size} packed bytes of {key}, more than {limit}, so save it"
                        " with np.save"
                    )
                else:
                    with opened.open(info) as member:
                        found[key] = npy.read_array(member, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy raise nearly anything on damaged bytes
        _refuse(path, "an npz file", shown((str(error).splitlines() or [""])[0])[:160])
    return found


def _mapped(path: Path, file: Any, info: zipfile.ZipInfo) -> np.ndarray:
    start = content_offset(file, info.header_offset)
    file.seek(start)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or file.tell() + size > start + info.file_size:
        raise ValueError("an array that does not fit its file")
    return np.memmap(
        path, dtype, mode="r", offset=file.tell(), shape=shape, order="F" if fortran else "C"
    )


def _first(arrays: Mapping[str, np.ndarray], keys: tuple[str, ...]) -> np.ndarray | None:
    return next((arrays[k] for k in keys if k in arrays), None)


def _stem(file: Path) -> str | None:
    """Returns the name of an IDX file of images up to the word images; None for other names."""
    before, word, after = file.name.partition("images")
    kinds = {f"{dot}idx{n}-ubyte{end}" for dot in "-." for n in "34" for end in ("", ".gz")}
    return before if word and after in kinds else None


def _labels_of(file: Path) -> Path | None:
    stem = _stem(file)
    if stem is None:
        return None
    names = [f"{stem}labels{dot}idx1-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    return next((p for n in names if (p := file.parent / n).exists()), None)


def _refuse(path: Path, expected: str, got: str) -> NoReturn:
    raise ValueError(f"{WHERE}: expected {expected} in {shown(path)}, got {got}.")
