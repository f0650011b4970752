"""What a run shows of its averaged system on the way: samples, and a bound on held-out data.

Both are pure functions of the weights. Nothing here draws from torch's generators or changes the
system, so a run has the same bits with and without them.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import images
from ..data import Data
from ..grad_mode import restored
from ..sampler import Sampler

SAMPLES = 64  # on a sheet
STEPS = 25  # of a sampler
TIMES = 16  # terms of a diffusion model's bound for each image
BATCH = 64
POINTS = 4096
SIDE = 256  # of the picture of points


def check(system: Any) -> None:
    """Raises ValueError for a system that draws no samples."""
    if not (hasattr(system, "sample") or hasattr(system, "for_sampler")):
        raise ValueError(
            "fastdiff.Trainer: expected a system that draws samples, got a"
            f" {type(system).__name__}. Leave out sample_every."
        )


@restored
@torch.no_grad()
def draw(system: Any, data: Data, *, held_out: Data | None = None, seed: int = 0) -> Tensor:
    """Returns the samples of ids 0, 1, … [n, *shape] on the CPU, class after class.

    Small images and conditions that are no labels are those of the first examples of `held_out`,
    or else of `data`.
    """
    check(system)
    device = next(system.parameters()).device
    n = SAMPLES if data.levels else POINTS
    ids = torch.arange(n)
    if hasattr(system, "sample"):
        found = system.sample(n, seed=seed, sample_ids=ids.to(device))
        return found.float().cpu()
    source = held_out or data
    x0, condition = source.batch(ids % source.examples)
    given: Any = None
    if isinstance(condition, dict):
        given = {k: v.to(device) for k, v in condition.items()}
    elif data.classes and data.levels:
        given = (ids * len(data.classes) // n).to(device)
    cond = system.condition(x0.to(device), given) if hasattr(system, "condition") else {}
    network, schedule, settings = system.for_sampler()
    steps = min(STEPS, schedule.num_train_timesteps)
    sampler = Sampler(network, schedule, **{"steps": steps, **settings})
    parts = [
        sampler.sample(
            (len(part), *data.shape),
            seed=seed,
            sample_ids=part,
            cond={k: v[part.to(device)] for k, v in cond.items()} or None,
        )
        for part in ids.split(BATCH if data.levels else POINTS)
    ]
    return torch.cat(parts).float().cpu()


def picture(x: Tensor, data: Data) -> Image.Image:
    """Returns a sheet of images, or for points [n, 2] a picture of how many are where."""
    if data.levels:
        levels = images.levels(torch.nan_to_num(x)).permute(0, 2, 3, 1).numpy()
        return images.grid(levels, None, [], columns=8)
    count, _, _ = np.histogram2d(
        -x[:, 1].numpy(), x[:, 0].numpy(), bins=SIDE // 4, range=((-2.5, 2.5), (-2.5, 2.5))
    )
    shade = 255 - np.clip(count * (60_000 / max(len(x), 1)), 0, 255)
    return Image.fromarray(shade.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST)


@restored
@torch.no_grad()
def evaluate(system: Any, held_out: Data, count: int, *, seed: int = 0) -> tuple[float, str]:
    """Returns (value, unit): the mean bound of the first `count` held-out examples.

    The unit is bits/dim for images and nats for points. A classifier has its cross entropy over
    noise levels, in nats. The bound of a diffusion model has `TIMES` terms for each image, so the
    number is noisier than that of `fastdiff eval`, with the same noise each time.
    """
    device = next(system.parameters()).device
    total, count = 0.0, min(count, held_out.examples)
    unit, scale = "nats", 1.0
    if held_out.levels and hasattr(system, "bound"):
        unit, scale = "bits/dim", math.log(2) * math.prod(held_out.shape)
    for index in torch.arange(count).split(BATCH):
        x0, condition = held_out.batch(index)
        x0, counter = x0.to(device), {"seed": seed, "sample_ids": index.to(device)}
        if hasattr(system, "bound"):
            options = (
                {"times": TIMES} if "times" in inspect.signature(system.bound).parameters else {}
            )
            terms = system.bound(x0, None, **counter, **options)
            values = sum(v.double() for v in terms.values())
        else:
            assert isinstance(condition, Tensor)
            values = system.guesses(x0, condition.to(device), times=TIMES, **counter).cross_entropy
        total += float(values.double().mean()) * len(index)
    return total / count / scale, unit
