"""Reads JSON and safetensors files without executing anything, and writes them atomically.

A file is written next to its target, flushed to disk and renamed. A reader, also after a crash of
the machine, therefore finds the old file or the new one, never a part.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
from safetensors import SafetensorError

from ..outside import read_object, shown

if TYPE_CHECKING:  # reading JSON only must not load torch
    import torch

T = TypeVar("T")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.(?:tmp|old)")
_DAY = 86_400  # seconds
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls write(temporary) next to `path`, then fsync, rename and fsync of the folder.

    The temporary file is created exclusively under a random name. So no link at that name is
    followed, and writers in other threads, processes or containers never share a file.
    """
    temporary = temporary_path(path)
    created = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINKS, 0o666)
    mode = os.fstat(created).st_mode & 0o777  # as the umask permits
    os.close(created)
    try:
        write(temporary)
        file = os.open(temporary, os.O_RDWR | _NO_LINKS)
        try:
            # safetensors creates files that only their owner can read
            os.fchmod(file, mode) if hasattr(os, "fchmod") else temporary.chmod(mode)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path, end: str = "tmp") -> Path:
    """Returns a new name next to `path` for what will become it; `sweep` knows it again."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{end}")


def target_of(name: str) -> str | None:
    """Returns the name of what an unfinished file was to become; None for other files."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None


def sweep(folder: Path, name: str) -> None:
    """Removes unfinished files and folders that killed writers of `name` left in a folder.

    Nothing in them has changed for a day; an unfinished file of a live writer is younger.
    """
    with os.scandir(folder) as entries:
        found = [e for e in entries if target_of(e.name) == name]
    for entry in found:
        paths = [entry.path]
        if entry.is_dir(follow_symlinks=False):
            paths += [os.path.join(top, n) for top, _, names in os.walk(entry) for n in names]
        try:
            latest = max(os.lstat(path).st_mtime for path in paths)
        except OSError:
            continue  # a live writer has just renamed or removed it
        if time.time() - latest > _DAY:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable, if the operating system supports it."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON."""
    write_atomically(
        path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    )


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors, and metadata of strings, as a safetensors file."""
    from safetensors.torch import save_file

    dense = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(dense, p, metadata=metadata))


def save_folder(
    path: str | PathLike[str], config: dict[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Writes model.safetensors and then config.json into a folder, which is created if needed."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"fastdiff.pretrained.files: expected {folder} to be a folder, got a file. Choose"
            " another path."
        )
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        raise ValueError(
            f"fastdiff.pretrained.files: expected finite numbers in the config for {folder}, got"
            " NaN or an infinity, which JSON does not have. Leave the setting out."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config)


def read_json(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Reads a JSON object in UTF-8, with or without a byte order mark.

    finite: whether NaN and the infinities are refused; diffusers writes infinities.

    Raises FileNotFoundError, or ValueError for other content.
    """
    return read_object(path, "fastdiff.pretrained.files", finite=finite)


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shapes and types of the tensors in a safetensors file, without reading them.

    A type is named as the file names it: F32, BF16, I64. Raises as `read_tensors` does.
    """
    return _open(path, lambda file: {k: _slice(file.get_slice(k)) for k in file.keys()})  # noqa: SIM118


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns (tensors, metadata) of a safetensors file.

    Raises FileNotFoundError, or ValueError for other content.
    """
    return _open(
        path,
        lambda file: (
            {k: file.get_tensor(k) for k in file.keys()},  # noqa: SIM118
            file.metadata() or {},
        ),
    )


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file, without reading its tensors.

    Raises as `read_tensors` does.
    """
    return _open(path, lambda file: file.metadata() or {})


def _slice(part: Any) -> tuple[tuple[int, ...], str]:
    return tuple(part.get_shape()), str(part.get_dtype())


def _open(path: Path, read: Callable[[Any], T]) -> T:
    """Returns read(file) of an open safetensors file, whole even if it is being replaced."""
    where = f"fastdiff.pretrained.files: expected safetensors in {shown(path)}, got"
    if not path.exists():
        pickles = [p.name for pattern in PICKLES for p in path.parent.glob(pattern)]
        if pickles:
            raise ValueError(
                f"fastdiff.pretrained.files: expected {shown(path)}, got the pickle"
                f" {shown(pickles[0])}, which can run code when read. Convert it to safetensors."
            )
        raise FileNotFoundError(
            f"fastdiff.pretrained.files: expected the file {shown(path)}, got none. Check the"
            " folder's path."
        )
    if not path.is_file():
        raise ValueError(f"{where} no regular file. Check the folder's path.")
    while True:
        version = _version(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                found = read(file)
        except (SafetensorError, OSError, RuntimeError, ValueError, MemoryError) as error:
            if _version(path) != version:
                continue
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{where} unreadable content ({shown(reason)}).") from None
        # safetensors opens the file twice: a writer may have replaced it between header and data
        if _version(path) == version:
            return found


def _version(path: Path) -> tuple[int, int] | None:
    """Returns a key that changes when the file is replaced; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def folder_of(path: str | PathLike[str]) -> Path:
    """Returns the folder, or raises ValueError for what can only be a file."""
    folder = Path(path)
    if folder.is_file() or folder.suffix in {p[1:] for p in PICKLES}:
        raise ValueError(
            "fastdiff.pretrained.files: expected a folder with config.json and model.safetensors,"
            f" got the file {shown(folder)}."
        )
    return folder


def load_folder(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns (config, tensors) of a folder.

    Raises FileNotFoundError for a missing file and ValueError for unreadable content.
    """
    folder = folder_of(path)
    return read_json(folder / "config.json"), read_tensors(folder / "model.safetensors")[0]
