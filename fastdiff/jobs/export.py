"""From a dataset to what other tools read, in one pass over its units (fastdiff.jobs.samples).

What is written appears under its name when it is whole and on disk, and not before: a run that is
    stopped, or that meets a
damaged unit, leaves nothing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..pretrained.files import sync_folder, write_atomically, write_json
from .formats import FORMATS
from .samples import Samples

MARK = "export.json"  # says that a folder is an export, and of what
PER_SHARD = 1000


def export(
    folder: str | os.PathLike[str],
    format: str,
    out: str | os.PathLike[str],
    *,
    ids: tuple[int, int] | None = None,
    partial: bool = False,
    overwrite: bool = False,
    per_shard: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Writes a dataset's samples to `out` and returns how many.

    Args:
        folder: the dataset. format: npz, npy or safetensors make one file; png and webdataset a
            folder.
        ids: (first, last), both included; all by default.
        partial: leave out what is not there yet, instead of refusing. Damaged units are refused all
            the same.
        overwrite: replace what is there: a file, or the folder of an earlier export.
        per_shard: samples in each of WebDataset's archives (1000).
        progress: called after each unit with its number of samples.

    Raises in one sentence, and then nothing was written: ValueError, FileNotFoundError and
        FileExistsError for arguments
    that cannot be met, fastdiff.jobs.samples.Unsound for missing and damaged units, OSError where
    writing fails.
    """
    folder, out = Path(folder), Path(out)
    if format not in FORMATS:
        raise ValueError(f"fastdiff.export: expected format in {list(FORMATS)}, got {format!r}.")
    if per_shard is not None and (per_shard < 1 or format != "webdataset"):
        raise ValueError(
            "fastdiff.export: expected per_shard >= 1 for the format webdataset alone, got"
            f" {per_shard} for {format}."
        )
    source = Samples(folder, ids, partial, progress)
    target = FORMATS[format]
    target.check(source.shape, source.dtype)
    _refuse(folder, out, target.folder, overwrite)

    def write(path: Path) -> None:
        target.export(path, source, per_shard or PER_SHARD)

    def write_marked(path: Path) -> None:
        write(path)
        first, last = source.selected.first, source.selected.last
        said = {
            "format": format,
            "ids": [first, last],
            "samples": source.count,
            **source.provenance,
        }
        write_json(path / MARK, said)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if target.folder:
            _write_folder(out, write_marked)
        else:
            write_atomically(out, write)
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        at = f" at {error.filename}" if error.filename else ""
        raise OSError(
            f"fastdiff.export: expected to write {out}, got {error.strerror!r}{at}. Nothing was"
            " left there; make room or give leave, then export again."
        ) from None
    return source.count


def _refuse(folder: Path, out: Path, tree: bool, overwrite: bool) -> None:
    """Raises where writing `out` would harm: over something else, or into the dataset."""
    here, there = out.resolve(), folder.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise ValueError(
            f"fastdiff.export: expected a place outside the dataset {folder}, got {out}. Name"
            " another one."
        )
    if not os.path.lexists(out):
        return
    if out.is_dir() != tree:
        kinds = "a file", "a folder"
        raise ValueError(
            f"fastdiff.export: expected {out} to become {kinds[tree]}, got {kinds[not tree]} there."
            " Name another place."
        )
    if not overwrite:
        raise FileExistsError(
            f"fastdiff.export: expected a new {out}, got one. Name another place, or pass"
            " --overwrite."
        )
    if tree and any(out.iterdir()) and not (out / MARK).exists():
        raise ValueError(
            f"fastdiff.export: expected an earlier export in {out}, got a folder without {MARK}."
            " Name another place."
        )


def _write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """write(temporary) beside `out`, everything to disk, then the name."""
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    for leftover in (temporary, old):  # of a process of this number that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        _sync_tree(temporary)
        replaced = out.exists()
        if replaced:
            os.rename(out, old)
        try:
            os.rename(temporary, out)
        except OSError:
            if replaced:
                os.rename(old, out)
            raise
        sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Everything below the folder to disk in one call: a million calls of fsync take hours."""
    syncfs = (
        getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if os.name == "posix" else None
    )
    if syncfs is None:
        if hasattr(os, "sync"):
            os.sync()
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(number) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(number)
