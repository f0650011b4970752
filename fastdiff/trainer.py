"""Training: minimise E ||target - network(x_t, t, y)||² over t, x0 and eps (Ho et al. 2020, eq. 14, for any target).

Everything random is a pure function of (seed, training step, example): the noise is stream 2 of the noise contract, the
times and the dropped labels stream 4, the order of the examples a permutation per epoch. A run that was stopped and
resumed is therefore the run that was not stopped.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import time
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import ops, rng
from .checkpoint import read_json, read_tensors, write_atomically, write_tensors
from .data import DataSet
from .prediction import normalize, target
from .pretrained import describe, save
from .schedule import Schedule

CHECKPOINT = "checkpoint.safetensors"
LOSSES = "loss.csv"


@dataclass(frozen=True)
class Settings:
    """How to train.

    steps of batch_size examples; lr rises over `warmup` steps and falls to 0 by a half cosine; `ema` is the decay of the
    averaged weights, which are what is sampled from; `label_dropout` the share of examples trained without their label
    (Ho & Salimans 2022, algorithm 1); gradients are scaled to at most `clip_norm`.
    """

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    label_dropout: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    prediction_type: str = "v"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction_type", normalize(self.prediction_type))
        checks = {
            "steps >= 1": self.steps >= 1,
            "batch_size >= 1": self.batch_size >= 1,
            "lr > 0": self.lr > 0,
            "warmup >= 0": self.warmup >= 0,
            "ema in [0, 1)": 0 <= self.ema < 1,
            "label_dropout in [0, 1]": 0 <= self.label_dropout <= 1,
            "clip_norm > 0": self.clip_norm > 0,
            "seed in [0, 2**64)": 0 <= self.seed < 2**64,
        }
        for wanted, fine in checks.items():
            if not fine:
                name = wanted.split()[0]
                raise ValueError(f"fastdiff.Trainer: expected {wanted}, got {getattr(self, name)}.")


class Trainer:
    """Trains a network (x_t, t, y) of fastdiff.models on a data set.

    Args:
        model: the network; trained in place. schedule: the noise. data: images and labels.
        settings: see Settings.

    Attributes:
        ema: the averaged network. step: training steps done. losses: [(step, mean loss since the entry before)].

    Raises:
        ValueError: a batch larger than the data set.
    """

    def __init__(self, model: torch.nn.Module, schedule: Schedule, data: DataSet, settings: Settings):
        if settings.batch_size > len(data.images):
            raise ValueError(
                f"fastdiff.Trainer: expected batch_size <= {len(data.images)} examples, got {settings.batch_size}."
            )
        self.model, self.schedule, self.data, self.settings = model.train(), schedule, data, settings
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )
        self.alpha, self.sigma = torch.tensor(schedule.alpha), torch.tensor(schedule.sigma)
        self.step = 0
        self.losses: list[tuple[int, float]] = []
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_t, t, y, target) of a training step: a function of the seed and the step alone."""
        s = self.settings
        index = self._examples(step)
        x0, labels = self.data.batch(index)
        counter: dict[str, Any] = {"seed": s.seed, "sample_ids": index, "step": step}
        t = rng.randint(self.schedule.num_train_timesteps, **counter)
        dropped = rng.uniform(**counter, word=1) < s.label_dropout
        y = torch.where(dropped, torch.full_like(labels, len(self.data.classes)), labels)
        eps = ops.randn(x0.shape, stream=rng.STREAM_FORWARD, **counter)
        x_t = ops.q_sample(x0, t, self.alpha, self.sigma, noise=eps)
        a, sd = (v[t].to(x0.dtype).view(-1, 1, 1, 1) for v in (self.alpha, self.sigma))
        return x_t, t, y, target(s.prediction_type, x0, eps, a, sd)

    def _examples(self, step: int) -> Tensor:
        per_epoch = len(self.data.images) // self.settings.batch_size
        epoch, place = divmod(step, per_epoch)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.data.images))
            self._order = (epoch, torch.from_numpy(order))
        return self._order[1][place * self.settings.batch_size : (place + 1) * self.settings.batch_size]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to 0 at the last step."""
        s = self.settings
        rise = min(1.0, (step + 1) / (s.warmup + 1))
        return s.lr * rise * 0.5 * (1 + math.cos(math.pi * step / s.steps))

    def train_step(self) -> float:
        """One optimiser step; returns its loss. Raises RuntimeError when the loss is not finite."""
        s = self.settings
        x_t, t, y, wanted = self.batch(self.step)
        loss = torch.nn.functional.mse_loss(self.model(x_t, t, y), wanted)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"fastdiff.Trainer: expected a finite loss, got {value} at step {self.step}. Lower lr.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        self.step += 1
        decay = min(s.ema, (1 + self.step) / (10 + self.step))  # the first averages forget the initial weights
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        return value

    def run(
        self, out: str | PathLike[str], *, log_every: int = 20, save_every: int = 500, progress: bool = True,
        until: int | None = None,
    ) -> float:  # fmt: skip
        """Trains to the last step (or `until`), with a checkpoint and the loss curve in `out`; returns the last mean loss.

        The finished folder holds the averaged weights as a model folder (`Sampler.from_pretrained`).
        """
        folder, s = Path(out), self.settings
        folder.mkdir(parents=True, exist_ok=True)
        stop = min(until or s.steps, s.steps)
        total, count, saved = 0.0, 0, time.monotonic()
        with tqdm(total=s.steps * s.batch_size, initial=self.step * s.batch_size, unit="img", disable=not progress,
                  desc="training", smoothing=0.05) as bar:  # fmt: skip
            while self.step < stop:
                total, count = total + self.train_step(), count + 1
                bar.update(s.batch_size)
                if self.step % log_every == 0 or self.step == stop:
                    self.losses.append((self.step, total / count))
                    bar.set_postfix(loss=f"{total / count:.4f}")
                    total, count = 0.0, 0
                if self.step % save_every == 0 or self.step == stop or time.monotonic() - saved > 300:
                    self.save_checkpoint(folder)
                    saved = time.monotonic()
        final = self.losses[-1][1] if self.losses else math.nan
        if self.step == s.steps:
            self.export(folder, final)
        return final

    def export(self, folder: Path, final_loss: float, **extra: Any) -> None:
        """The averaged weights with everything a sampler needs to know, as a model folder."""
        data = {
            "name": self.data.name,
            "classes": list(self.data.classes),
            "null_label": len(self.data.classes),
            "shape": list(self.data.images.shape[1:]),
            "range": [-1.0, 1.0],
        }
        training = {**asdict(self.settings), "final_loss": round(final_loss, 6), "torch": torch.__version__, **extra}
        settings = {"prediction_type": self.settings.prediction_type, "clip_range": 1.0}
        save(folder, self.ema, self.schedule, settings, data=data, training=training)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be resumed."""
        return {
            "settings": asdict(self.settings),
            "model": describe(self.model),
            "schedule": self.schedule.to_config(),
            "data": self.data.name,
        }

    def save_checkpoint(self, folder: Path) -> None:
        """Writes weights, averages and optimiser state, then the loss curve."""
        tensors: dict[str, Tensor] = {}
        for name, network in (("model", self.model), ("ema", self.ema)):
            tensors |= {f"{name}.{k}": v for k, v in network.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
        metadata = {"step": str(self.step), "identity": json.dumps(self.identity()), "losses": json.dumps(self.losses)}
        write_tensors(folder / CHECKPOINT, tensors, metadata)
        write_atomically(folder / LOSSES, self._write_losses)

    def _write_losses(self, path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["step", "loss"])
            writer.writerows((step, f"{loss:.6f}") for step, loss in self.losses)

    def resume(self, out: str | PathLike[str]) -> None:
        """Continues from the folder's checkpoint. Raises ValueError when it belongs to another run."""
        tensors, metadata = read_tensors(Path(out) / CHECKPOINT)
        theirs, ours = json.loads(metadata.get("identity", "{}")), json.loads(json.dumps(self.identity()))
        for key, value in ours.items():
            if theirs.get(key) != value:
                raise ValueError(
                    f"fastdiff.Trainer: expected the {key} {value} of this run in {out}, got {theirs.get(key)}. "
                    "Use its settings or another folder."
                )
        for name, network in (("model", self.model), ("ema", self.ema)):
            network.load_state_dict({k: tensors[f"{name}.{k}"] for k in network.state_dict()})
        for name, parameter in self.model.named_parameters():
            state = {k: tensors.get(f"adam.{k}.{name}") for k in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {k: v for k, v in state.items() if v is not None}
        self.step = int(metadata["step"])
        self.losses = [(int(step), float(loss)) for step, loss in json.loads(metadata["losses"])]


def is_run(out: str | PathLike[str]) -> bool:
    """Whether the folder holds a training run, finished or not."""
    folder = Path(out)
    return (folder / CHECKPOINT).exists() or ((folder / "config.json").exists() and "training" in read_json(
        folder / "config.json"))  # fmt: skip
