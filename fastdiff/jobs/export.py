"""Writes a dataset in the layout that other tools read, in one pass over its units.

The file or folder gets its name once it is complete and on disk: an export that is stopped, or that
meets a damaged unit, leaves nothing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..pretrained.files import (
    sweep,
    sync_folder,
    temporary_path,
    write_atomically,
    write_json,
)
from .formats import FORMATS
from .samples import Samples

MARK = "export.json"  # identifies a folder as an export, and says what it holds


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
    """Writes a dataset's samples to `out` and returns their number.

    Args:
        folder: the dataset.
        format: a name in `fastdiff.jobs.FORMATS`; its attribute `folder` says whether `out` becomes
            a folder or one file.
        out: the new file or folder.
        ids: (first, last), both included; all by default.
        partial: leaves out missing units instead of refusing them. Damaged units are always
            refused.
        overwrite: replaces a file, or the folder of an earlier export.
        per_shard: samples in each archive, for formats that write archives.
        progress: called after each unit with its number of samples.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: for arguments that cannot be met.
        fastdiff.jobs.samples.DatasetError: for missing and damaged units.
        OSError: where writing fails. Nothing is left behind after any error.
    """
    folder, out = Path(folder), Path(out)
    if format not in FORMATS:
        raise ValueError(
            f"fastdiff.jobs.export: expected format in {list(FORMATS)}, got {format!r}."
        )
    target = FORMATS[format]
    if per_shard is not None and (per_shard < 1 or target.per_shard is None):
        archives = " or ".join(f.name for f in FORMATS.values() if f.per_shard is not None)
        raise ValueError(
            f"fastdiff.jobs.export: expected per_shard >= 1, and only for the format {archives},"
            " got"
            f" {per_shard} for {format}."
        )
    source = Samples(folder, ids, partial, progress)
    target.check(source.shape, source.dtype)
    if source.partial and not target.export_ids:
        raise ValueError(
            f"fastdiff.jobs.export: expected all ids for the format {format}, which cannot say"
            " which are"
            " missing. Use npz, or a range of --ids without gaps."
        )
    _check_out(folder, out, target.folder, overwrite)

    def write(path: Path) -> None:
        target.export(path, source, per_shard or target.per_shard or source.count)

    def write_marked(path: Path) -> None:
        write(path)
        first, last = source.selected.first, source.selected.last
        description = {
            "format": format,
            "ids": [first, last],
            "samples": source.count,
            "spec": source.spec,
            **source.provenance,
        }
        write_json(path / MARK, description)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent, out.name)
        if target.folder:
            _write_folder(out, write_marked)
        else:
            write_atomically(out, write)
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        at = f" at {error.filename}" if error.filename else ""
        raise OSError(
            f"fastdiff.jobs.export: expected to write {out}, got {error.strerror!r}{at}. Nothing"
            " was"
            " left there; free disk space or permit writing, then export again."
        ) from None
    return source.count


def _check_out(folder: Path, out: Path, tree: bool, overwrite: bool) -> None:
    """Raises where `out` is inside the dataset, or anything but an earlier export."""
    here, there = out.resolve(), folder.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise ValueError(
            f"fastdiff.jobs.export: expected a path outside the dataset {folder}, got {out}. Name"
            " another one."
        )
    if not os.path.lexists(out):
        return
    if out.is_dir() != tree:
        kinds = "a file", "a folder"
        raise ValueError(
            f"fastdiff.jobs.export: expected {out} to become {kinds[tree]}, got {kinds[not tree]}"
            " there."
            " Name another path."
        )
    if not overwrite:
        raise FileExistsError(
            f"fastdiff.jobs.export: expected a new {out}, got one. Name another path, or pass"
            " --overwrite."
        )
    if tree and any(out.iterdir()) and not (out / MARK).exists():
        raise ValueError(
            f"fastdiff.jobs.export: expected an earlier export in {out}, got a folder without"
            f" {MARK}."
            " Name another path."
        )


def _write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Calls write(temporary) next to `out`, flushes everything to disk, then renames it."""
    temporary, old = (temporary_path(out, end) for end in ("tmp", "old"))
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
    """Flushes the folder's file system in one call: a million calls of fsync take hours."""
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
