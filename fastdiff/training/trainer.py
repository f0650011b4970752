"""Training: minimises the mean of a system's loss over a data set.

    θ <- θ - lr_k Adam(∇ mean_b loss_b),   average <- d·average + (1 - d) θ

The system defines the loss (`fastdiff.theory.system`). All randomness in it is a pure function of
(seed, training step, example), and the order of the examples is a permutation for each epoch. A run
that is stopped, or killed, and resumed therefore gives the same weights as a run without
interruption.
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import DataSet, Toy
from ..grad_mode import restored
from ..pretrained import save_system
from ..pretrained.folders import undescribed
from ..theory.registry import name_of
from . import folder as folders
from .progress import Progress
from .settings import Entry, Settings

SECONDS_BETWEEN_CHECKPOINTS = 300


class Trainer:
    """Trains a system on a data set.

    Args:
        system: a `fastdiff.theory.system.System`; it is trained in place, on its device.
        data: a data set of `fastdiff.data`.
        settings: see `Settings`.
        notes: values that JSON can hold, stored in the checkpoint and in the model folder.

    Attributes:
        ema: the averaged system.
        step: the number of training steps done.
        losses: the loss curve, a list of `Entry`.
        stopping: set it to True, for instance from a signal handler, and `run` writes a checkpoint
            and returns after its current step.

    Raises:
        ValueError: for a batch larger than the data set.
        TypeError: for an object that is not a system.
    """

    def __init__(
        self,
        system: Any,
        data: DataSet | Toy,
        settings: Settings,
        notes: dict[str, Any] | None = None,
    ):
        if settings.batch_size > data.examples:
            raise ValueError(
                f"fastdiff.Trainer: expected batch_size <= {data.examples} examples, got"
                f" {settings.batch_size}."
            )
        if not isinstance(system, torch.nn.Module) or not callable(getattr(system, "loss", None)):
            raise TypeError(
                f"fastdiff.Trainer: expected a system with a loss, got a {type(system).__name__}."
                " Wrap a network, in fastdiff.theory.systems.Denoiser for instance."
            )
        self.system: Any = system.train()
        self.data, self.settings, self.notes = data, settings, dict(notes or {})
        self.ema: Any = copy.deepcopy(system).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            system.parameters(),
            lr=settings.lr,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        )
        self.device = next(system.parameters()).device
        self.step = 0
        self.losses: list[Entry] = []
        self.stopping = False
        # sums of losses and of gradient norms since the last entry, and their number of steps
        self._sums = (0.0, 0.0, 0)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def examples(self, step: int) -> Tensor:
        """Returns the indices of the examples of a training step, int64 [batch_size].

        Every example comes once per epoch, except the rest that does not fill a batch.
        """
        per_epoch = self.data.examples // self.settings.batch_size
        epoch, batch = divmod(step, per_epoch)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(
                self.data.examples
            )
            self._order = (epoch, torch.from_numpy(order))
        return self._order[1][
            batch * self.settings.batch_size : (batch + 1) * self.settings.batch_size
        ]

    def train_step(self) -> tuple[float, float]:
        """Takes one optimiser step and returns (loss, gradient norm).

        Raises RuntimeError if one of them is not finite.
        """
        s, index = self.settings, self.examples(self.step)
        x0, condition = self.data.batch(index)
        x0 = x0.to(self.device)
        labels: Any = (
            condition.to(self.device)
            if isinstance(condition, Tensor)
            else {name: value.to(self.device) for name, value in condition.items()}
        )
        losses = self.system.loss(
            x0, labels, seed=s.seed, sample_ids=index.to(self.device), step=self.step
        )
        if losses.shape != index.shape:
            raise ValueError(
                f"fastdiff.Trainer: expected a loss [{len(index)}], got {list(losses.shape)}."
            )
        loss = losses.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.system.parameters(), s.clip_norm)
        values = float(loss.detach()), float(norm)
        if not all(map(math.isfinite, values)):
            raise RuntimeError(
                f"fastdiff.Trainer: expected a finite loss and gradient, got {values[0]} and"
                f" {values[1]} at step {self.step}. Lower lr."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate(self.step)
        self.optimizer.step()
        self.step += 1
        self._average()
        return values

    @restored
    @torch.no_grad()
    def _average(self) -> None:
        # a smaller decay at first, so that the averages forget the initial weights
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for average, parameter in zip(self.ema.parameters(), self.system.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
        for averaged, buffer in zip(self.ema.buffers(), self.system.buffers(), strict=True):
            averaged.copy_(buffer)

    def run(
        self,
        out: str | PathLike[str],
        *,
        log_every: int = 20,
        save_every: int = 500,
        progress: bool = True,
        until: int | None = None,
        minutes: float | None = None,
    ) -> float:
        """Trains to the last step and returns the last mean loss.

        Args:
            out: the folder for checkpoints, the loss curve and the averaged system.
            log_every: steps between rows of the loss curve.
            save_every: steps between checkpoints.
            progress: show the progress on stderr.
            until: stop with a checkpoint after this number of steps; None for all.
            minutes: after this time, stop with a checkpoint and write the averaged system. The
                learning rate depends on the step only, so `resume` continues the same run.

        A run that reached its last step or its time limit leaves the averaged system in the folder
        (see `pretrained.load_system`). For a system that is not in the registry, and for a network
        that nothing describes (`models.made_by`), the folder holds only the checkpoint and the loss
        curve; of the network there is a warning.
        """
        folder, s = Path(out), self.settings
        folder.mkdir(parents=True, exist_ok=True)
        stop = s.steps if until is None else min(until, s.steps)
        begin = saved = time.monotonic()
        timed_out = False
        with Progress(self.step, s.steps, s.batch_size, show=progress) as shown:
            while self.step < stop and not timed_out and not self.stopping:
                loss, norm = self.train_step()
                self._sums = (self._sums[0] + loss, self._sums[1] + norm, self._sums[2] + 1)
                if self.step % log_every == 0 or self.step == s.steps:
                    count = self._sums[2]
                    rate = s.learning_rate(self.step - 1)
                    self.losses.append(
                        Entry(self.step, self._sums[0] / count, self._sums[1] / count, rate)
                    )
                    self._sums = (0.0, 0.0, 0)
                shown.update(
                    self.step, self.losses[-1]._asdict() if self.losses else {"loss": loss}
                )
                now = time.monotonic()
                timed_out = minutes is not None and now - begin >= 60 * minutes
                if self.step % save_every == 0 or now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self.save_checkpoint(folder)
                    saved = time.monotonic()
        self.save_checkpoint(folder)
        if (self.step == s.steps or timed_out) and self._registered():
            reason = undescribed(self.ema)
            if reason is None:
                self.export(folder)
            else:
                warnings.warn(
                    "fastdiff.Trainer: expected a network that a model folder can describe, got"
                    f" {reason}, so {folder} holds the checkpoint and no model. Tell how it is made"
                    " by fastdiff.models.made_by.",
                    stacklevel=2,
                )
        return self.losses[-1].loss if self.losses else math.nan

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
            **asdict(self.settings),
            "final_loss": final,
            "torch": torch.__version__,
            **self.notes,
        }
        if self.step < self.settings.steps:
            training["stopped_at"] = self.step
        save_system(folder, self.ema, data=data, training=training)

    def identity(self) -> dict[str, Any]:
        """Returns the settings, system and data; `resume` needs a checkpoint with the same ones."""
        name = name_of(self.system) if self._registered() else type(self.system).__qualname__
        try:
            config = getattr(self.system, "config", None)
        except TypeError:  # of a user's network, which has no description
            config = None
        system = {"name": name, "config": config}
        return {"settings": asdict(self.settings), "system": system, "data": self.data.name}

    def _registered(self) -> bool:
        try:
            return bool(name_of(self.system))
        except TypeError:
            return False

    def save_checkpoint(self, folder: Path) -> None:
        """Writes weights, averaged weights and optimiser state, then the loss curve."""
        tensors: dict[str, Tensor] = {}
        for name, system in (("system", self.system), ("ema", self.ema)):
            tensors |= {f"{name}.{k}": v for k, v in system.state_dict().items()}
        for name, parameter in self.system.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
        metadata = {
            "step": self.step,
            "identity": self.identity(),
            "losses": self.losses,
            "sums": self._sums,
            "machine": _machine(),
            "notes": self.notes,
        }
        folders.write(folder, tensors, metadata, self.losses)

    def resume(self, out: str | PathLike[str]) -> None:
        """Continues from the folder's checkpoint.

        Raises ValueError if it belongs to another run. Warns if this machine's arithmetic may
        differ from that of the machine that wrote it.
        """
        tensors, saved = folders.read(Path(out))
        for key, value in json.loads(json.dumps(self.identity())).items():
            if saved["identity"].get(key) != value:
                raise ValueError(
                    f"fastdiff.Trainer: expected the {key} {value} of this run in {out}, got"
                    f" {saved['identity'].get(key)}. Use its settings or another folder."
                )
        for key, value in _machine().items():
            if saved["machine"].get(key) != value:
                warnings.warn(
                    f"fastdiff.Trainer: expected {key} {saved['machine'].get(key)}, with which this"
                    f" run began, got {value}. The run continues, but its weights may differ in"
                    " bits from those of a run without interruption.",
                    stacklevel=2,
                )
        folders.sweep(Path(out))
        for name, system in (("system", self.system), ("ema", self.ema)):
            system.load_state_dict({k: tensors[f"{name}.{k}"] for k in system.state_dict()})
        for name, parameter in self.system.named_parameters():
            state = {k: tensors.get(f"adam.{k}.{name}") for k in ("step", "exp_avg", "exp_avg_sq")}
            present = {
                k: v if k == "step" else v.to(self.device)
                for k, v in state.items()
                if v is not None
            }
            if present:
                self.optimizer.state[parameter] = present
        self.step, self._sums = saved["step"], tuple(saved["sums"])
        self.losses = [Entry(*row) for row in saved["losses"]]


def _machine() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }
