"""Writes what a run leaves in its folder, in its first process: see `folder` for the files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ..outside import shown
from ..pretrained.files import write_atomically
from . import folder as folders
from . import loggers, watch
from .progress import memory
from .settings import Entry, NotFinite

SMOOTHED = 10  # entries of the loss curve, whose mean chooses the best checkpoint


class Record:
    """The folder of a run while it runs, a context manager.

    Args:
        trainer: whose state is written.
        folder: of the run; it is made.
        keep, log, sample_every, eval_every, eval_images: see `Trainer.run`.
        active: whether this process writes; in the others every method does nothing.

    Raises:
        ValueError: for numbers below their ranges, and for samples or evaluations that can't be.
    """

    def __init__(
        self,
        trainer: Any,
        folder: Path,
        keep: int,
        log: Sequence[str | loggers.Logger],
        sample_every: int,
        eval_every: int,
        eval_images: int,
        *,
        active: bool,
    ):
        named = {
            "keep": (keep, 1),
            "sample_every": (sample_every, 0),
            "eval_every": (eval_every, 0),
        }
        for name, (value, least) in {**named, "eval_images": (eval_images, 1)}.items():
            if value < least:
                raise ValueError(f"fastdiff.Trainer: expected {name} >= {least}, got {value}.")
        if eval_every and trainer.held_out is None:
            raise ValueError(
                "fastdiff.Trainer: expected held_out data for eval_every, got none. Pass them to"
                " Trainer."
            )
        if sample_every:
            watch.check(trainer.system)
        loggers.check(log)
        self.trainer, self.folder, self.keep, self.active = trainer, folder, keep, active
        self.log, self.sample_every = log, sample_every
        self.eval_every, self.eval_images = eval_every, eval_images
        self.loggers: list[loggers.Logger] = []
        self.saved: int | None = None  # the step of the checkpoint in the folder
        self.best: dict[str, Any] | None = None
        self.last = (time.monotonic(), trainer.step)

    def __enter__(self) -> Record:
        if self.active:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / folders.CHECKPOINT).exists():
                self.saved = self.trainer.step
            self.best = folders.best(self.folder)
            with self.room("the log"):
                self.loggers = loggers.open_loggers(self.log, self.folder, self.trainer.step)
        return self

    def __exit__(self, *_: Any) -> None:
        for logger in self.loggers:
            logger.close()

    def room(self, what: str) -> AbstractContextManager[None]:
        """Returns a block whose errors of the disk become one sentence."""
        return folders.room(what, self.folder, self.saved)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Adds to an error of a step which checkpoint there is."""
        try:
            yield
        except NotFinite as error:
            if self.saved is None:
                raise
            raise NotFinite(
                f"{error} The checkpoint of step {self.saved} in {shown(self.folder)} is kept."
            ) from None

    def entry(self, entry: Entry) -> None:
        """Logs an entry of the loss curve, with speed and memory."""
        if not self.active:
            return
        now = time.monotonic()
        done = (entry.step - self.last[1]) * self.trainer.settings.batch_size
        speed = done / max(now - self.last[0], 1e-9)
        self.last = (now, entry.step)
        values = entry._asdict() | {
            "images_per_second": round(speed, 2),
            "memory": memory(self.trainer.device),
        }
        del values["step"]
        self._log(entry.step, values)

    def step(self) -> dict[str, Any] | None:
        """Samples, evaluates and stores averages after a step, where their turn has come.

        Returns {step, value, by} where the evaluation was the best so far.
        """
        t = self.trainer
        if not self.active:
            return None
        last, better = t.step == t.settings.steps, None
        if t.averages and (t.step % t.settings.snapshot_steps() == 0 or last):
            with self.room("a snapshot of the averages"):
                t.snapshot(self.folder)
        if self.sample_every and (t.step % self.sample_every == 0 or last):
            sheet = watch.picture(watch.draw(t.ema, t.data, held_out=t.held_out), t.data)
            path = folders.of_step(self.folder / folders.SAMPLES, t.step, "png")
            with self.room("samples"):
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, lambda p: sheet.save(p, format="PNG"))
                for logger in self.loggers:
                    logger.images(t.step, sheet)
        if self.eval_every and (t.step % self.eval_every == 0 or last):
            assert t.held_out is not None
            value, unit = watch.evaluate(t.ema, t.held_out, self.eval_images)
            self._log(t.step, {"eval": value, "eval_unit": unit})
            better = self._better(value, f"{unit} of {self.eval_images} held-out examples")
        return better

    def checkpoint(self, better: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint, and makes it the best one if it is.

        better: the result of an evaluation, where that was the best so far. Without evaluations the
        smoothed loss chooses.
        """
        t = self.trainer
        if not self.active:
            return
        with self.room(f"the checkpoint of step {t.step}"):
            t.save_checkpoint(self.folder, keep=self.keep)
            self.saved = t.step
            if not self.eval_every and t.losses:
                recent = [e.loss for e in t.losses[-SMOOTHED:]]
                better = self._better(sum(recent) / len(recent), "the smoothed training loss")
            if better is not None:
                self.best = better
                folders.link(self.folder / folders.CHECKPOINT, self.folder / folders.BEST)
            folders.write_index(self.folder, t.step, self.best)

    def _better(self, value: float, by: str) -> dict[str, Any] | None:
        """Returns the entry of a new best value; None where it is not below the one so far."""
        if self.best and self.best.get("by") == by and not value < self.best["value"]:
            return None
        return {"file": folders.BEST, "step": self.trainer.step, "value": value, "by": by}

    def _log(self, step: int, values: dict[str, Any]) -> None:
        with self.room("the log"):
            for logger in self.loggers:
                logger.log(step, values)
