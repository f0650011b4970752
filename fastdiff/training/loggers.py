"""Where the numbers of a run go: JSON lines always, TensorBoard and Weights & Biases on request.

A logger is anything with the three methods of `Logger`. The libraries behind the last two are
loaded only when they are asked for.
"""

from __future__ import annotations

import importlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..pretrained.files import write_atomically

LINES = "log.jsonl"
WANDB_ID = "wandb-id.txt"


class Logger(Protocol):
    """Gets what happens in a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers by name, after `step` steps."""
        ...

    def images(self, step: int, grid: Image.Image) -> None:
        """Takes a sheet of samples."""
        ...

    def close(self) -> None:
        """Ends the log."""
        ...


class JSONLines:
    """Appends one JSON object per call of `log` to log.jsonl.

    A run that continues from `step` steps first takes out what was logged after them.
    """

    def __init__(self, folder: Path, step: int = 0):
        path = folder / LINES
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(True) if _until(line, step)]
            write_atomically(path, lambda p: p.write_bytes(b"".join(kept)))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def log(self, step: int, values: Mapping[str, float]) -> None:
        row = {"time": round(time.time(), 3), "step": step, **values}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def images(self, step: int, grid: Image.Image) -> None:
        """Does nothing: the sheet is a file of the run already."""

    def close(self) -> None:
        self.file.close()


def _until(line: bytes, step: int) -> bool:
    """Whether a line is whole and of a step up to `step`."""
    try:
        return line.endswith(b"\n") and int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False


class TensorBoard:
    """Writes events for TensorBoard into the run's folder `tensorboard`."""

    def __init__(self, folder: Path, step: int = 0):
        _needed("tensorboard")
        from torch.utils.tensorboard.writer import SummaryWriter

        # what an interrupted run logged after its checkpoint is hidden
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)

    def images(self, step: int, grid: Image.Image) -> None:
        self.writer.add_image("samples", np.asarray(grid), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Logs to Weights & Biases, whose settings are its own environment variables (WANDB_MODE …)."""

    def __init__(self, folder: Path, step: int = 0):
        wandb = _needed("wandb")
        # a folder is one run of wandb, however often it continues
        known = folder / WANDB_ID
        if not known.exists():
            write_atomically(known, lambda p: p.write_text(secrets.token_hex(8), encoding="ascii"))
        self.run = wandb.init(
            project="fastdiff",
            name=folder.resolve().name,
            id=known.read_text(encoding="ascii")[:64],
            resume="allow",
            dir=str(folder),
            reinit="finish_previous",
        )
        self.image = wandb.Image

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def images(self, step: int, grid: Image.Image) -> None:
        self.run.log({"samples": self.image(grid)}, step=step)

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check(names: Sequence[str | Logger]) -> None:
    """Raises ValueError for an unknown name, RuntimeError for a library that is not installed."""
    for name in names:
        if isinstance(name, str):
            if name not in LOGGERS:
                raise ValueError(
                    f"fastdiff.Trainer: expected log in {sorted(LOGGERS)}, got {name!r}."
                )
            _needed(name)


def open_loggers(names: Sequence[str | Logger], folder: Path, step: int) -> list[Logger]:
    """Returns the loggers of a run: JSON lines, and those of the names; own ones stay as they are.

    step: the number of steps done.
    """
    chosen = [LOGGERS[n](folder, step) if isinstance(n, str) else n for n in names]
    return [JSONLines(folder, step), *chosen]


def _needed(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise RuntimeError(
            f"fastdiff.Trainer: expected the package {library} for log={library!r}, got none."
            f" Install fastdiff-engine[{library}]."
        ) from None
