"""Fine-tunes the shipped Fashion-MNIST weights towards a reward, and draws docs/rollouts.md's
figures.

    python examples/reward_finetune.py [--reward compact] [--updates 20] [--out docs/rollouts]

Each update draws groups of samples of one class, scores them with the reward, and compares each
sample with its group: A = (r - mean)/deviation (Shao et al. 2024, eq. 3; Liu et al. 2025, eq. 9).
The policy is DDIM with eta = 1 (Black et al. 2023), and the objective the clipped one of PPO,

    min(ratio A, clip(ratio, 1 - c, 1 + c) A),   ratio = pi(x_s | x_t)/pi_old(x_s | x_t),

per transition. `Sampler.rollout` keeps the transitions and log pi_old, and `Rollout.score` computes
log pi with gradients. The first ratios are 1 to the bit. The distance to the shipped weights is the
Kullback-Leibler divergence of whole trajectories in nats, which the same scores estimate without
bias: E[sum log pi - log pi_reference] over trajectories of pi.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from fastdiff import Sampler
from fastdiff.images import grid, to_uint8

CLASSES, GROUP, STEPS, CALL = 8, 8, 8, 64
CLIP, RATE, SEED = 0.2, 1e-4, 0


def brightness(x: Tensor) -> Tensor:
    """The mean of the pixels in [0, 1], per sample."""
    return (x.clamp(-1, 1).flatten(1).mean(1) + 1) / 2


def compact(x: Tensor) -> Tensor:
    """Minus the kilobytes of the picture as a PNG file, per sample: no function of pixels that has
    a gradient (the incompressibility of Black et al. 2023, with its sign turned).
    """
    sizes = []
    for picture in to_uint8(x).squeeze(1).numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", optimize=True)
        sizes.append(file.tell() / 1024)
    return -torch.tensor(sizes)


REWARDS: dict[str, Callable[[Tensor], Tensor]] = {"brightness": brightness, "compact": compact}


class Update(NamedTuple):
    """What an update saw before it changed the weights, and the distance after the last one."""

    reward: float
    deviation: float  # of the rewards in a group, on average
    divergence: float  # nats of a trajectory from the shipped weights
    ratio: float  # the largest |ratio - 1| of the first minibatch
    seconds: float


def policy(model: nn.Module, shipped: Sampler) -> Sampler:
    """The sampler of the shipped weights' schedule, with a Gaussian at every step but the last."""
    return Sampler(
        model,
        shipped.schedule,
        solver="ddim",
        eta=1.0,
        steps=STEPS,
        prediction_type="v",
        network_batch=CALL,  # scores have the rollout's bits in minibatches of any size
    )


def advantages(reward: Tensor) -> Tensor:
    """(r - mean)/deviation inside each group [CLASSES·GROUP]."""
    groups = reward.view(-1, GROUP)
    return ((groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def finetune(reward: Callable[[Tensor], Tensor], updates: int) -> tuple[list[Update], nn.Module]:
    """Returns the updates and the tuned network."""
    shipped = Sampler.from_pretrained("fashion-mnist")
    reference = shipped.model.requires_grad_(False)
    model = copy.deepcopy(reference).requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    sampler, n, log = policy(model, shipped), CLASSES * GROUP, []
    for update in range(updates):
        begin = time.perf_counter()
        labels = (torch.arange(n) // GROUP + update * CLASSES) % 10
        ids = torch.arange(update * n, (update + 1) * n)
        rollout = sampler.rollout((n, 1, 28, 28), seed=SEED, sample_ids=ids, cond={"y": labels})
        rewards = reward(rollout.samples)
        gain = dict(zip(ids.tolist(), advantages(rewards).tolist(), strict=True))
        with torch.no_grad():
            from_reference = (rollout.log_prob - rollout.score(reference)).sum(0).mean()
        first: float | None = None
        for part in rollout.minibatches(CALL // 2, seed=SEED, epoch=update):
            advantage = torch.tensor([gain[i] for i in part.ids.tolist()])
            for k, row in enumerate(part.rows):  # backward row by row: memory of one call
                ratio = (part.score(rows=[row])[0] - part.log_prob[k]).exp()
                if first is None:
                    first = float((ratio.detach() - 1).abs().max())
                clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
                loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
                (loss / len(part.rows)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        log.append(
            Update(
                float(rewards.mean()),
                float(rewards.view(-1, GROUP).std(1).mean()),
                float(from_reference),
                first or 0.0,
                time.perf_counter() - begin,
            )
        )
        shown = ", ".join(f"{name} {value:.4g}" for name, value in log[-1]._asdict().items())
        print(f"update {update + 1} of {updates}: {shown}", flush=True)
    return log, model


def draw(log: list[Update], pictures: dict[str, Tensor], name: str, out: Path) -> None:
    """Writes the curves, and samples before and after of the same seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    numbers = range(1, len(log) + 1)
    low = [u.reward - u.deviation for u in log]
    high = [u.reward + u.deviation for u in log]
    axes[0].fill_between(numbers, low, high, color="#1b6ca8", alpha=0.2, lw=0)
    axes[0].plot(numbers, [u.reward for u in log], color="#1b6ca8")
    axes[0].set(xlabel="update", title=f"reward: {name}")
    axes[1].plot(numbers, [u.divergence for u in log], color="#d1495b")
    axes[1].set(xlabel="update", title="KL to the shipped weights, nats a trajectory")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / f"rewards_{name}.png", dpi=110)
    for label, x in pictures.items():
        sheet = grid(to_uint8(x).permute(0, 2, 3, 1).numpy(), None, [], columns=10)
        sheet.quantize(32).save(out / f"rewards_{name}_{label}.png", optimize=True)


def main(arguments: list[str] | None = None) -> list[Update]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--reward", choices=REWARDS, default="compact")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/rollouts"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    log, tuned = finetune(REWARDS[options.reward], options.updates)
    with open(options.out / f"rewards_{options.reward}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Update._fields)
        writer.writerows([f"{value:.6g}" for value in update] for update in log)
    shipped = Sampler.from_pretrained("fashion-mnist")
    labels = {"y": torch.arange(10).repeat(3)}
    pictures = {
        label: policy(model, shipped).sample((30, 1, 28, 28), seed=SEED + 1, cond=labels)
        for label, model in (("before", shipped.model), ("after", tuned))
    }
    draw(log, pictures, options.reward, options.out)
    return log


if __name__ == "__main__":
    main()
