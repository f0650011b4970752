"""The folder of a training run: its checkpoints, its loss curve and snapshots of its averages.

    checkpoint.safetensors    the newest checkpoint
    checkpoints/step-….safetensors    earlier ones, the last few
    best.safetensors          the checkpoint with the lowest value so far
    checkpoints.json          the steps of these, and which value the best one has
    loss.csv, log.jsonl       the loss curve, and all that was logged
    ema/step-….safetensors    snapshots of averages, for `fastdiff.training.posthoc`
    samples/step-….png        samples on the way
    config.json, model.safetensors    the finished model

A checkpoint is one safetensors file, replaced atomically. It holds the tensors and, as JSON in its
metadata, the step, the loss curve and the identity of the run. An earlier file of the newest
checkpoint gets a second name before it is replaced, so keeping it copies no bytes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..outside import NotJSON, parse_json, shown
from ..pretrained.files import (
    read_json,
    read_metadata,
    read_tensors,
    target_of,
    temporary_path,
    write_atomically,
    write_json,
    write_tensors,
)
from .settings import Entry, NotFinite

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
EARLIER = "checkpoints"
INDEX = "checkpoints.json"
LOSSES = "loss.csv"
SNAPSHOTS = "ema"
SAMPLES = "samples"
_FILES = (CHECKPOINT, BEST, INDEX, LOSSES, "log.jsonl", "config.json", "model.safetensors")
_KEYS = ("identity", "losses", "machine", "notes", "step", "sums")
_STEP = re.compile(r"step-([0-9]+)\.(?:safetensors|png)")


def of_step(folder: Path, step: int, end: str = "safetensors") -> Path:
    """Returns the name of a step's file in a folder; the names sort by step."""
    return folder / f"step-{step:09d}.{end}"


def steps_of(folder: Path) -> dict[int, Path]:
    """Returns the files of steps in a folder, by ascending step."""
    found = {int(m[1]): p for p in folder.glob("step-*") if (m := _STEP.fullmatch(p.name))}
    return dict(sorted(found.items()))


@contextlib.contextmanager
def room(what: str, path: Path, kept: int | None) -> Iterator[None]:
    """Turns an error of the disk within the block into one sentence, a RuntimeError.

    what: the thing that is written. kept: the step of the last checkpoint, or None.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        then = (
            f"The checkpoint of step {kept} is kept: free space on the disk, or repair it, and"
            " continue with --resume."
            if kept is not None
            else "There is no checkpoint yet: free space on the disk, or repair it, and start"
            " again."
        )
        raise RuntimeError(
            f"fastdiff.Trainer: expected to write {what} in {shown(path)}, got {shown(reason)!r}."
            f" {then}"
        ) from None


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    losses: Iterable[Entry],
    *,
    keep: int = 1,
) -> None:
    """Writes the checkpoint, then the loss curve.

    keep: how many checkpoints there are afterwards, this one included.

    Raises NotFinite for tensors that are not finite.
    """
    bad = next(
        (k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()),
        None,
    )
    if bad is not None:
        raise NotFinite(
            f"fastdiff.Trainer: expected finite weights after step {metadata['step']}, got NaN or"
            f" an infinity in {bad!r}. Lower lr; the last checkpoint in {shown(folder)} is from"
            " before."
        )
    path = folder / CHECKPOINT
    if keep > 1 and path.exists():
        with contextlib.suppress(ValueError):  # a damaged one is not kept
            step = header(path)["step"]
            if step < metadata["step"]:
                (folder / EARLIER).mkdir(exist_ok=True)
                link(path, of_step(folder / EARLIER, step))
    write_tensors(path, tensors, {k: json.dumps(v) for k, v in metadata.items()})
    old = [p for step, p in steps_of(folder / EARLIER).items() if step < metadata["step"]]
    for surplus in old[: max(0, len(old) - (keep - 1))]:
        surplus.unlink(missing_ok=True)

    def curve(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Entry._fields)
            writer.writerows(
                (e.step, f"{e.loss:.6f}", f"{e.grad_norm:.6f}", f"{e.lr:.6g}") for e in losses
            )

    write_atomically(folder / LOSSES, curve)


def link(source: Path, target: Path) -> None:
    """Gives a file a second name, atomically; copies it where the file system has no links."""
    temporary = temporary_path(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def best(folder: Path) -> dict[str, Any] | None:
    """Returns {step, value, by} of the best checkpoint so far, or None."""
    try:
        found = read_json(folder / INDEX).get("best")
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and (folder / BEST).exists() else None


def write_index(folder: Path, newest: int, best: Mapping[str, Any] | None) -> None:
    """Writes checkpoints.json."""
    value = {
        "newest": {"file": CHECKPOINT, "step": newest},
        "earlier": [
            {"file": f"{EARLIER}/{p.name}", "step": step}
            for step, p in steps_of(folder / EARLIER).items()
        ],
        "best": dict(best) if best else None,
    }
    write_json(folder / INDEX, value)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors, metadata) of the folder's checkpoint.

    Raises ValueError for a file with other content; the sentence names the newest checkpoint that
    is intact.
    """
    path = folder / CHECKPOINT
    try:
        tensors, texts = read_tensors(path)
        return tensors, _metadata(texts, path)
    except (FileNotFoundError, ValueError) as error:
        for step, earlier in reversed(steps_of(folder / EARLIER).items()):
            try:
                _metadata(read_tensors(earlier)[1], earlier)
            except ValueError:
                continue
            raise ValueError(
                f"{error} The newest intact checkpoint is {shown(earlier)}, of step {step}: to"
                f" continue from it, cp {shown(earlier)} {shown(path)} and then --resume."
            ) from None
        raise


def header(path: Path) -> dict[str, Any]:
    """Returns the metadata of a checkpoint file. Raises as `read` does."""
    return _metadata(read_metadata(path), path)


def _metadata(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    missing = [k for k in _KEYS if k not in texts]
    if missing:
        raise ValueError(
            f"fastdiff.Trainer: expected {missing[0]!r} in {shown(path)}, got none. It was"
            " written by another version; start in another folder."
        )
    try:
        return {k: parse_json(texts[k], finite=False) for k in _KEYS}
    except NotJSON as error:
        raise ValueError(
            f"fastdiff.Trainer: expected JSON in the metadata of {shown(path)}, got"
            f" {error}. Take the file from a backup, or start in another folder."
        ) from None


def sweep(folder: Path) -> None:
    """Removes the temporary files that killed writers left behind."""
    for path in folder.glob(".*.tmp"):
        if target_of(path.name) in _FILES:
            path.unlink(missing_ok=True)
    for name in (EARLIER, SNAPSHOTS, SAMPLES):
        for path in (folder / name).glob(".*.tmp"):
            if _STEP.fullmatch(target_of(path.name) or ""):
                path.unlink(missing_ok=True)


def is_run(out: str | PathLike[str]) -> bool:
    """Returns whether the folder holds a training run, finished or not."""
    folder = Path(out)
    config = folder / "config.json"
    return (
        (folder / CHECKPOINT).exists()
        or bool(steps_of(folder / EARLIER))
        or (config.exists() and "training" in read_json(config))
    )
