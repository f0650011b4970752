"""Training: minimises the mean of a system's loss over a data set.

    θ <- θ - lr_k Adam(∇ mean_b loss_b),   average <- d·average + (1 - d) θ

The system defines the loss (`fastdiff.theory.system`). All randomness in it is a pure function of
(seed, training step, example), and the order of the examples is a permutation for each epoch. A run
that is stopped, or killed, and resumed therefore gives the same weights as a run without
interruption. Under torchrun each process has a share of every batch (`fastdiff.training.ranks`).

This file is over 400 lines because a third of it describes arguments and what may go wrong.
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..acceleration.training import faster_steps
from ..data import Condition, Data, batches
from ..grad_mode import restored
from ..pretrained import save_system
from ..pretrained.folders import undescribed
from ..theory.registry import name_of
from . import averages, gradients, loggers, ranks, state
from . import folder as folders
from .profiles import PowerAverage
from .progress import Progress
from .record import Record
from .settings import Entry, NotFinite, Settings, completed

SECONDS_BETWEEN_CHECKPOINTS = 300
# what is added to a message about numbers that are not finite
_REMEDY = "Lower lr, or look for NaN in the data."


class Trainer:
    """Trains a system on a data set.

    Args:
        system: a `fastdiff.theory.system.System`; it is trained in place, on its device.
        data: a data set of `fastdiff.data`.
        settings: see `Settings`; None for Settings(**keywords).
        notes: values that JSON can hold, stored in the checkpoint and in the model folder.
        held_out: data for `eval_every`, and for super-resolution's samples.
        keywords: settings by name, as the flags of `fastdiff train` have them.

    Attributes:
        ema: the averaged system.
        averages: those of `ema_rel`.
        step: the number of training steps done.
        losses: the loss curve, a list of `Entry`.
        stopping: set it to True, for instance from a signal handler, and `run` writes a checkpoint
            and returns after its current step, on all ranks.

    Raises:
        ValueError: for a batch larger than the data set, or with fewer examples than parts.
        TypeError: for an object that is not a system.
    """

    def __init__(
        self,
        system: Any,
        data: Data,
        settings: Settings | None = None,
        notes: dict[str, Any] | None = None,
        *,
        held_out: Data | None = None,
        **keywords: Any,
    ):
        settings = Settings(**keywords) if settings is None else settings
        parts = ranks.world() * settings.accumulate
        if settings.batch_size > data.examples:
            raise ValueError(
                f"fastdiff.Trainer: expected batch_size <= {data.examples} examples, got"
                f" {settings.batch_size}."
            )
        if settings.batch_size < parts:
            raise ValueError(
                f"fastdiff.Trainer: expected batch_size >= {parts}, the ranks times accumulate, got"
                f" {settings.batch_size}."
            )
        if not isinstance(system, torch.nn.Module) or not callable(getattr(system, "loss", None)):
            raise TypeError(
                f"fastdiff.Trainer: expected a system with a loss, got a {type(system).__name__}."
                " Wrap a network, in fastdiff.theory.systems.Denoiser for instance."
            )
        if parts > 1:
            gradients.check_parts(system)
        self.system: Any = system.train()
        self.data, self.settings, self.notes = data, settings, dict(notes or {})
        self.held_out = held_out
        ranks.equalise([*system.parameters(), *system.buffers()])
        self.ema: Any = copy.deepcopy(system).eval().requires_grad_(False)
        self.parameters = list(system.parameters())
        self.averages = [PowerAverage(self.parameters, s) for s in settings.ema_rel]
        self.device = self.parameters[0].device
        self.optimizer = self._adamw(settings.fused)
        # after the copy: the averaged system keeps its own forward
        self._kernels = faster_steps(system) if settings.accelerate else None
        if settings.checkpoint_activations:
            gradients.recompute_activations(system)
        if settings.compile:
            gradients.compile_networks(system)
        self.step = 0
        self.losses: list[Entry] = []
        self.stopping = self._late = False
        self._agreed = (False, False)  # of the two, on all ranks after the last step
        # sums of losses and of gradient norms since the last entry, and their number of steps
        self._sums = (0.0, 0.0, 0)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def _adamw(self, fused: bool) -> torch.optim.AdamW:
        s = self.settings
        options: dict[str, Any] = {"lr": s.lr, "betas": s.betas, "weight_decay": s.weight_decay}
        try:
            return torch.optim.AdamW(self.parameters, **options, fused=fused or None)
        except RuntimeError:  # a device for which torch has none
            return torch.optim.AdamW(self.parameters, **options)

    def examples(self, step: int) -> Tensor:
        """Returns the indices of the examples of a training step, int64 [batch_size].

        Every example comes once per epoch, except the rest that does not fill a batch.
        """
        epoch, batch = divmod(step, self._steps_per_epoch())
        if self._order[0] != epoch:
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(
                self.data.examples
            )
            self._order = (epoch, torch.from_numpy(order))
        return self._order[1][
            batch * self.settings.batch_size : (batch + 1) * self.settings.batch_size
        ]

    def _steps_per_epoch(self) -> int:
        return self.data.examples // self.settings.batch_size

    def _plan(self, first: int, end: int) -> Iterator[tuple[Tensor, int]]:
        """Yields (this rank's indices, epoch) of the steps first … end - 1."""
        a, b = ranks.share(self.settings.batch_size)
        for step in range(first, end):
            yield self.examples(step)[a:b], step // self._steps_per_epoch()

    def train_step(
        self, batch: tuple[Tensor, Tensor, Condition] | None = None
    ) -> tuple[float, float]:
        """Takes one optimiser step and returns (loss, gradient norm), of the global batch.

        batch: this rank's (index, x0, condition) of the step; None to load it.

        Raises RuntimeError if loss or norm is not finite; the weights are then as they were.
        """
        s = self.settings
        if batch is None:
            batch = next(batches(self.data, self._plan(self.step, self.step + 1), seed=s.seed))
        start, _ = ranks.share(s.batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        mean, rows = gradients.accumulate(
            self.system, batch, s, step=self.step, start=start, device=self.device
        )
        loss = float(mean)
        if ranks.world() > 1:
            with ranks.answered(self.step):
                loss, stopping, late = ranks.sum_gradients(
                    self.parameters, (loss, float(self.stopping), float(self._late))
                )
                self._agreed = (stopping > 0, late > 0)
                if rows is not None and rows.numel():
                    rows = ranks.gather_rows(rows, start, s.batch_size)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, s.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(
                f"fastdiff.Trainer: expected a finite loss and gradient, got {loss} and"
                f" {norm} at step {self.step}. {_REMEDY}"
            )
        if rows is not None:
            self.system.record(rows)
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate(self.step)
        self.optimizer.step()
        self.step += 1
        self._average()
        return loss, norm

    @restored
    @torch.no_grad()
    def _average(self) -> None:
        # a smaller decay at first, so that the averages forget the initial weights
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        averages: list[Tensor] = list(self.ema.parameters())
        torch._foreach_lerp_(averages, list[Tensor](self.parameters), 1 - decay)
        for averaged, buffer in zip(self.ema.buffers(), self.system.buffers(), strict=True):
            averaged.copy_(buffer)
        for average in self.averages:
            average.update(self.parameters, self.step)

    def run(
        self,
        out: str | PathLike[str],
        *,
        log_every: int = 20,
        save_every: int = 500,
        keep: int = 3,
        sample_every: int = 0,
        eval_every: int = 0,
        eval_images: int = 256,
        log: Sequence[str | loggers.Logger] = (),
        progress: bool = True,
        until: int | None = None,
        minutes: float | None = None,
    ) -> float:
        """Trains to the last step and returns the last mean loss.

        Args:
            out: the folder for checkpoints, the loss curve and the averaged system.
            log_every: steps between rows of the loss curve.
            save_every: steps between checkpoints.
            keep: the number of checkpoints that are kept, in addition to the best one.
            sample_every: steps between sheets of samples in the folder; 0 for none.
            eval_every: steps between evaluations of the averaged system on `held_out`; 0 for none.
            eval_images: how many held-out examples are evaluated.
            log: `tensorboard`, `wandb` or objects with the methods of `loggers.Logger`.
            progress: show the progress on stderr.
            until: stop with a checkpoint after this number of steps; None for all.
            minutes: after this time, stop with a checkpoint and write the averaged system. The
                learning rate depends on the step only, so `resume` continues the same run.

        A run that reached its last step or its time limit leaves the averaged system in the folder
        (see `pretrained.load_system`). For a system that is not in the registry, and for a network
        that nothing describes (`models.made_by`), the folder holds only the checkpoint and the loss
        curve; of the network there is a warning. Only rank 0 writes, evaluates and shows anything.

        Raises RuntimeError for numbers that are not finite, a disk that is full and ranks that
        died; the last checkpoint is then kept.
        """
        s = self.settings
        stop = s.steps if until is None else min(until, s.steps)
        first = ranks.rank() == 0
        begin = saved = time.monotonic()
        record = Record(
            self, Path(out), keep, log, sample_every, eval_every, eval_images, active=first
        )
        shown = Progress(
            self.step,
            s.steps,
            s.batch_size,
            unit=getattr(self.system, "loss_unit", "nats"),
            device=self.device,
            show=progress and first,
        )
        loaded = batches(self.data, self._plan(self.step, stop), seed=s.seed, workers=s.workers)
        with record, shown, closing(loaded):  # type: ignore[type-var]
            while self.step < stop and not any(self._ending()):
                with record.named():
                    loss, norm = self.train_step(next(loaded))
                self._sums = (self._sums[0] + loss, self._sums[1] + norm, self._sums[2] + 1)
                if self.step % log_every == 0 or self.step == s.steps:
                    count = self._sums[2]
                    rate = s.learning_rate(self.step - 1)
                    self.losses.append(
                        Entry(self.step, self._sums[0] / count, self._sums[1] / count, rate)
                    )
                    self._sums = (0.0, 0.0, 0)
                    record.entry(self.losses[-1])
                shown.update(
                    self.step, self.losses[-1]._asdict() if self.losses else {"loss": loss}
                )
                now = time.monotonic()
                if minutes is not None and now - begin >= 60 * minutes:
                    self._late = True
                better = record.step()
                overdue = now - saved > SECONDS_BETWEEN_CHECKPOINTS
                if better or self.step % save_every == 0 or overdue:
                    record.checkpoint(better)
                    saved = time.monotonic()
            record.checkpoint()
            self.stopping, late = self._ending()
            if (self.step == s.steps or late) and self._registered() and first:
                self._finish(Path(out), record)
            # the others wait, or torchrun would end the first while it writes
            with ranks.answered(self.step):
                ranks.barrier()
        return self.losses[-1].loss if self.losses else math.nan

    def _finish(self, folder: Path, record: Record) -> None:
        reason = undescribed(self.ema)
        if reason is None:
            with record.room("the model"):
                self.export(folder)
            return
        warnings.warn(
            "fastdiff.Trainer: expected a network that a model folder can describe, got"
            f" {reason}, so {folder} holds the checkpoint and no model. Tell how it is made"
            " by fastdiff.models.made_by.",
            stacklevel=3,
        )

    def _round_as(self, saved: dict[str, Any]) -> None:
        """Leaves out faster arithmetic that a run began without."""
        if self.settings.fused and not saved["fused"]:
            self.settings = replace(self.settings, fused=False)
            self.optimizer = self._adamw(False)
        if self._kernels and not saved["accelerate"]:
            self.settings = replace(self.settings, accelerate=False)
            self._kernels.on = False

    def _ending(self) -> tuple[bool, bool]:
        """Returns whether the run stops, on request and for its time.

        Ranks go by what they agreed on in the last step: a signal reaches them at different times.
        """
        return (self.stopping, self._late) if ranks.world() == 1 else self._agreed

    def export(self, folder: Path) -> None:
        """Writes the averaged system as a model folder, with its data and training settings."""
        data: dict[str, Any] = {
            "name": self.data.name,
            "classes": list(self.data.classes),
            "null_label": len(self.data.classes),
            "shape": list(self.data.shape),
            "range": [-1.0, 1.0] if self.data.levels else None,
        }
        if origin := getattr(self.data, "origin", None):
            data["origin"] = origin  # where `fastdiff eval` finds the data again
        final = round(self.losses[-1].loss, 6) if self.losses else None
        training = {
            **self.settings.identity(),
            "final_loss": final,
            "torch": torch.__version__,
            **self.notes,
        }
        if self.step < self.settings.steps:
            training["stopped_at"] = self.step
        save_system(folder, self.ema, data=data, training=training)

    def snapshot(self, folder: Path) -> None:
        """Writes a snapshot of the averages `ema_rel` into the run's folder."""
        names = [name for name, _ in self.system.named_parameters()]
        rest = {k: v for k, v in self.system.state_dict().items() if k not in set(names)}
        averages.write_snapshot(folder, self.step, self.averages, names, rest)

    def identity(self) -> dict[str, Any]:
        """Returns the settings, system and data; `resume` needs a checkpoint with the same ones."""
        name = name_of(self.system) if self._registered() else type(self.system).__qualname__
        try:
            config = getattr(self.system, "config", None)
        except TypeError:  # of a user's network, which has no description
            config = None
        system = {"name": name, "config": config}
        return {"settings": self.settings.identity(), "system": system, "data": self.data.name}

    def _registered(self) -> bool:
        try:
            return bool(name_of(self.system))
        except TypeError:
            return False

    def save_checkpoint(self, folder: Path, *, keep: int = 1) -> None:
        """Writes weights, averaged weights and optimiser state, then the loss curve."""
        metadata = {
            "step": self.step,
            "identity": self.identity(),
            "losses": self.losses,
            "sums": self._sums,
            "machine": state.machine(self.settings),
            "notes": self.notes,
        }
        folders.write(folder, state.tensors_of(self), metadata, self.losses, keep=keep)

    def resume(self, out: str | PathLike[str]) -> None:
        """Continues from the folder's checkpoint.

        Raises ValueError if it belongs to another run. Warns if this machine's arithmetic may
        differ from that of the machine that wrote it.
        """
        tensors, saved = folders.read(Path(out))
        identity = saved["identity"] | {"settings": completed(saved["identity"]["settings"])}
        self._round_as(identity["settings"])
        for key, value in json.loads(json.dumps(self.identity())).items():
            if identity.get(key) != value:
                raise ValueError(
                    f"fastdiff.Trainer: expected the {key} {value} of this run in {out}, got"
                    f" {identity.get(key)}. Use its settings or another folder."
                )
        for key, (before, now) in state.differences(saved["machine"], self.settings).items():
            warnings.warn(
                f"fastdiff.Trainer: expected {key} {before}, with which this run began, got {now}."
                " The run continues, but its weights may differ in bits from those of a run without"
                " interruption.",
                stacklevel=2,
            )
        if ranks.rank() == 0:
            folders.sweep(Path(out))
        state.restore(self, tensors)
        self.step, self._sums = saved["step"], tuple(saved["sums"])
        self.losses = [Entry(*row) for row in saved["losses"]]
