"""Small trainers for the tests of training; this file is also the script that torchrun starts.

    python -m torch.distributed.run --nproc-per-node 2 small_trainers.py FILE.json NAME …

writes the losses and the weights of each named case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff import Schedule, Trainer
from fastdiff.data import load_fashion_mnist, load_toy
from fastdiff.models import UNet
from fastdiff.theory.systems import Denoiser
from fastdiff.theory.systems.presets import make
from fastdiff.training import Settings

SMALL: dict[str, Any] = {"widths": (8, 16), "emb": 16, "groups": 8, "mid_blocks": 1}
STEPS = 20


class Learning(nn.Module):
    """Learns from its losses: the weight of an example follows the rows that were recorded."""

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.w = nn.Parameter(torch.tensor([0.5, -0.25]))
        self.unused = nn.Parameter(torch.tensor([3.0]))
        self.register_buffer("level", torch.ones((), dtype=torch.float64))
        self.rows = torch.zeros(0, 2, dtype=torch.float64)

    def loss(
        self,
        x0: Tensor,
        labels: Tensor,
        *,
        seed: int,
        sample_ids: Tensor,
        step: int,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        losses = (self.w * x0).square().sum(1) * self.level.float()
        self.rows = torch.stack([sample_ids.double(), losses.detach().double()], 1)
        return losses

    def pending(self) -> Tensor:
        rows, self.rows = self.rows, self.rows[:0]
        return rows

    def record(self, rows: Tensor) -> None:
        # in the order of the batch: the factors differ
        factors = torch.arange(1, len(rows) + 1, dtype=torch.float64)
        self.level.copy_(1 + 0.1 * (factors * rows[:, 1]).mean() + 1e-4 * (factors @ rows[:, 0]))


def denoiser(**settings: Any) -> Trainer:
    torch.manual_seed(0)
    system = Denoiser(UNet(**SMALL), Schedule.cosine(1000), "v")
    return Trainer(system, load_fashion_mnist(), Settings(**_settings(settings)))


def of_points(name: str, options: dict[str, Any], **settings: Any) -> Trainer:
    data = load_toy("moons", n=400)
    torch.manual_seed(0)
    return Trainer(make(name, data, **options), data, Settings(**_settings(settings)))


def learning(**settings: Any) -> Trainer:
    return Trainer(Learning(), load_toy("moons", n=400), Settings(**_settings(settings)))


def _settings(changes: dict[str, Any]) -> dict[str, Any]:
    return {"steps": STEPS, "batch_size": 10, "warmup": 2, "seed": 3, **changes}


CASES: dict[str, Callable[..., Trainer]] = {
    "denoiser": denoiser,
    "learning": learning,
    "vae": lambda **s: of_points("vae", {"widths": (8,)}, **s),
    "vdm": lambda **s: of_points("vdm", {"widths": (8,)}, **s),
}
# an odd batch: the shares of two ranks differ
ODD = {"batch_size": 7}


def trajectory(trainer: Trainer) -> dict[str, Any]:
    """Takes all steps and returns the losses, the norms and the weights."""
    taken = [trainer.train_step() for _ in range(trainer.settings.steps)]
    weights = [p.detach().flatten().tolist() for p in trainer.ema.parameters()]
    return {
        "losses": [loss for loss, _ in taken],
        "norms": [norm for _, norm in taken],
        "weights": [v for part in weights for v in part],
    }


def main() -> None:
    from fastdiff.training import ranks

    with ranks.joined():
        found = {}
        for name in sys.argv[2:]:
            case, _, changes = name.partition(":")
            found[name] = trajectory(CASES[case](**json.loads(changes or "{}")))
        if ranks.rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
