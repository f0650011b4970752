"""The folder of a training run: writes and reads its checkpoint and its loss curve.

A checkpoint is one safetensors file, replaced atomically. It holds the tensors and, as JSON in its
metadata, the step, the loss curve and the identity of the run.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..outside import NotJSON, parse_json, shown
from ..pretrained.files import read_json, read_tensors, target_of, write_atomically, write_tensors
from .settings import Entry

CHECKPOINT = "checkpoint.safetensors"
LOSSES = "loss.csv"
_FILES = (CHECKPOINT, LOSSES, "config.json", "model.safetensors")


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    losses: Iterable[Entry],
) -> None:
    """Writes the checkpoint, then the loss curve."""
    write_tensors(folder / CHECKPOINT, tensors, {k: json.dumps(v) for k, v in metadata.items()})

    def curve(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Entry._fields)
            writer.writerows(
                (e.step, f"{e.loss:.6f}", f"{e.grad_norm:.6f}", f"{e.lr:.6g}") for e in losses
            )

    write_atomically(folder / LOSSES, curve)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors, metadata) of the folder's checkpoint.

    Raises ValueError for a file with other content.
    """
    tensors, texts = read_tensors(folder / CHECKPOINT)
    keys = ("identity", "losses", "machine", "notes", "step", "sums")
    missing = [k for k in keys if k not in texts]
    if missing:
        raise ValueError(
            f"fastdiff.Trainer: expected {missing[0]!r} in {folder / CHECKPOINT}, got none. It was"
            " written by another version; start in another folder."
        )
    try:
        return tensors, {k: parse_json(texts[k], finite=False) for k in keys}
    except NotJSON as error:
        raise ValueError(
            f"fastdiff.Trainer: expected JSON in the metadata of {shown(folder / CHECKPOINT)}, got"
            f" {error}. Take the file from a backup, or start in another folder."
        ) from None


def sweep(folder: Path) -> None:
    """Removes the temporary files that killed writers left behind."""
    for path in folder.glob(".*.tmp"):
        if target_of(path.name) in _FILES:
            path.unlink(missing_ok=True)


def is_run(out: str | PathLike[str]) -> bool:
    """Returns whether the folder holds a training run, finished or not."""
    folder = Path(out)
    config = folder / "config.json"
    return (folder / CHECKPOINT).exists() or (config.exists() and "training" in read_json(config))
