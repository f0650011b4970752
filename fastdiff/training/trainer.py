"""Training: minimise the mean of a system's loss over a data set.

    θ <- θ - lr_k Adam(∇ mean_b loss_b),   average <- d·average + (1 - d) θ

What the loss is, is the system's affair (`fastdiff.theory.registry`). Everything random in it is a
pure function of (seed, training step, example), and the order of the examples is a permutation per
epoch: a run that was stopped, or killed, and resumed is the run that was not.
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
from ..pretrained import save_system
from ..theory.registry import name_of
from . import folder as folders
from .progress import Progress
from .settings import Entry, Settings

SECONDS_BETWEEN_CHECKPOINTS = 300


class Trainer:
    """Trains a system on a data set.

    Args:
        system: see `fastdiff.theory.registry.System`; trained in place, on the device where it is.
            data: `fastdiff.data`.
        settings: see Settings. notes: what JSON can hold, kept in the checkpoint and in the model
            folder.

    Attributes:
        ema: the averaged system. step: training steps done. losses: the curve, a list of `Entry`.
            stopping: set it, from a signal handler for instance, and `run` ends after the step it
            is at, with a checkpoint.

    Raises:
        ValueError: a batch larger than the data set. TypeError: a system that is none.
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
        self._sums = (
            0.0,
            0.0,
            0,
        )  # of losses and gradient norms since the last entry, and of how many
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def examples(self, step: int) -> Tensor:
        """Which examples a training step sees, int64 [batch_size]: each once an epoch, the last few
        left out.
        """
        per_epoch = self.data.examples // self.settings.batch_size
        epoch, place = divmod(step, per_epoch)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(
                self.data.examples
            )
            self._order = (epoch, torch.from_numpy(order))
        return self._order[1][
            place * self.settings.batch_size : (place + 1) * self.settings.batch_size
        ]

    def train_step(self) -> tuple[float, float]:
        """One optimiser step; returns (loss, gradient norm). Raises RuntimeError when one of them
        is not finite.
        """
        s, index = self.settings, self.examples(self.step)
        x0, labels = (v.to(self.device) for v in self.data.batch(index))
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

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(
            self.settings.ema, (1 + self.step) / (10 + self.step)
        )  # the first averages forget the initial weights
        for average, parameter in zip(self.ema.parameters(), self.system.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
        for mine, theirs in zip(self.ema.buffers(), self.system.buffers(), strict=True):
            mine.copy_(theirs)

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
        """Trains to the last step, with checkpoints and the loss curve in `out`; returns the last
        mean loss.

        until: stop with a checkpoint at this step. minutes: stop with a checkpoint, and the average
            as it is, when this
        much time has passed; the learning rate goes by steps, so `resume` continues the same run.

        The folder of a run that reached its last step or its minutes holds the averaged system
        (`pretrained.load_system`); of a system that the registry does not know, the checkpoint is
        all there is.
        """
        folder, s = Path(out), self.settings
        folder.mkdir(parents=True, exist_ok=True)
        stop = min(until or s.steps, s.steps)
        begin = saved = time.monotonic()
        over = False
        with Progress(self.step, s.steps, s.batch_size, show=progress) as shown:
            while self.step < stop and not over and not self.stopping:
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
                over = minutes is not None and now - begin >= 60 * minutes
                if self.step % save_every == 0 or now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self.save_checkpoint(folder)
                    saved = time.monotonic()
        self.save_checkpoint(folder)
        if (self.step == s.steps or over) and self._registered():
            self.export(folder)
        return self.losses[-1].loss if self.losses else math.nan

    def export(self, folder: Path) -> None:
        """The averaged system with what it was trained on, as a model folder."""
        data: dict[str, Any] = {
            "name": self.data.name,
            "classes": list(self.data.classes),
            "null_label": len(self.data.classes),
            "shape": list(self.data.shape),
            "range": [-1.0, 1.0] if self.data.levels else None,
        }
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
        """What a checkpoint must agree on to be resumed."""
        name = name_of(self.system) if self._registered() else type(self.system).__qualname__
        system = {"name": name, "config": getattr(self.system, "config", None)}
        return {"settings": asdict(self.settings), "system": system, "data": self.data.name}

    def _registered(self) -> bool:
        try:
            return bool(name_of(self.system))
        except TypeError:
            return False

    def save_checkpoint(self, folder: Path) -> None:
        """Writes weights, averages and optimiser state, then the loss curve."""
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

        Raises ValueError when it belongs to another run; warns where this machine's arithmetic may
        differ from the one that wrote it.
        """
        tensors, known = folders.read(Path(out))
        for key, value in json.loads(json.dumps(self.identity())).items():
            if known["identity"].get(key) != value:
                raise ValueError(
                    f"fastdiff.Trainer: expected the {key} {value} of this run in {out}, got"
                    f" {known['identity'].get(key)}. Use its settings or another folder."
                )
        for key, value in _machine().items():
            if known["machine"].get(key) != value:
                warnings.warn(
                    f"fastdiff.Trainer: expected {key} {known['machine'].get(key)}, with which this"
                    f" run began, got {value}. It goes on, but its bits may not be those of an"
                    " undisturbed run.",
                    stacklevel=2,
                )
        folders.sweep(Path(out))
        for name, system in (("system", self.system), ("ema", self.ema)):
            system.load_state_dict({k: tensors[f"{name}.{k}"] for k in system.state_dict()})
        for name, parameter in self.system.named_parameters():
            state = {k: tensors.get(f"adam.{k}.{name}") for k in ("step", "exp_avg", "exp_avg_sq")}
            kept = {
                k: v if k == "step" else v.to(self.device)
                for k, v in state.items()
                if v is not None
            }
            if kept:
                self.optimizer.state[parameter] = kept
        self.step, self._sums = known["step"], tuple(known["sums"])
        self.losses = [Entry(*row) for row in known["losses"]]


def _machine() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }
