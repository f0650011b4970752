"""SHA-256 of the parts of a model: files of weights, modules in memory, source code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def of_file(path: Path) -> str:
    """Returns the hash of a file's bytes. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(folder: Path, files: Iterable[Path]) -> str:
    """Returns the hash of the files' relative paths, in order, and their contents."""
    digest = hashlib.sha256()
    for name, path in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        digest.update(f"{name} {of_file(path)}\n".encode())
    return digest.hexdigest()


def of_module(network: Any) -> str | None:
    """Returns the hash of a module's state: sorted names, dtypes, shapes and bytes.

    None for anything that is neither a module nor a method of one.
    """
    module = network if isinstance(network, nn.Module) else getattr(network, "__self__", None)
    if not isinstance(module, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            dense = value.detach().cpu().contiguous()
            digest.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
