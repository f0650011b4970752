"""Draws the picture of docs/theory/hvae.md: the levels of a hierarchy, and a diffusion as one.

    python examples/hvae.py --model runs/hvae [--out docs/theory/figures]

The model folder is written by `fastdiff train --model hvae`. It takes a minute on one core.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.data import load_fashion_mnist
from fastdiff.pretrained import load_system
from fastdiff.theory.likelihood import elbo, optimal_variance
from fastdiff.theory.variational import HVAE, DiffusionHVAE

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, RED, GREY = "#1b6ca8", "#d1495b", "#888888"


@torch.no_grad()
def with_fixed_levels(model: HVAE, fixed: int, n: int, seed: int) -> Tensor:
    """Returns means of p(x|z) [n, 1, S, S].

    The `fixed` uppermost levels are the same draw for all n images; the others are drawn for each.
    """
    state, depth = model.start.expand(n, -1, -1, -1), len(model.levels)
    for i in reversed(range(depth)):
        ids = torch.zeros(n, dtype=torch.int64) if i >= depth - fixed else torch.arange(1, n + 1)
        mean, logvar = model.levels[i].p(state)
        z = ops.reparameterize(mean, logvar, seed=seed, sample_ids=ids, step=i, stream=0)
        state = model.levels[i](state, z)
        if i:
            state = model.up[i](torch.nn.functional.silu(state))
    return model.decode(state).mean


def levels(axis: plt.Axes, model: HVAE) -> None:
    rows = []
    for count in reversed(range(len(model.levels) + 1)):
        for seed in (3, 5):
            rows.append(torch.cat(list(with_fixed_levels(model, count, 10, seed)[:, 0]), dim=1))
    axis.imshow(torch.cat(rows).clamp(-1, 1), cmap="gray", vmin=-1, vmax=1)
    redrawn = [", ".join(f"z{i}" for i in range(1, k + 1)) for k in range(len(model.levels) + 1)]
    labels = [f"{names} redrawn" if names else "all fixed" for names in redrawn]
    axis.set(yticks=[28 + 56 * i for i in range(len(labels))], yticklabels=labels, xticks=[])
    axis.tick_params(length=0, labelsize=8)
    axis.set_title("ten draws, two seeds each")


@torch.no_grad()
def costs(axis: plt.Axes, model: HVAE) -> None:
    x, _ = load_fashion_mnist("bundled-test").batch(torch.arange(500))
    terms = model.bound(x, seed=0, sample_ids=torch.arange(500))
    unit = math.log(2) * x[0].numel()
    names = [name for name in terms if name != "reconstruction"]
    values = [float(terms[name].mean()) / unit for name in names]
    axis.bar([n.replace("kl_", "z") for n in names], values, color=BLUE)
    axis.set(
        ylabel="bits/dim",
        title=f"KL of each level; x given all: {float(terms['reconstruction'].mean()) / unit:.2f}",
    )
    print({n: round(float(t.mean()) / unit, 4) for n, t in terms.items()}, "bits/dim")


def diffusion(axis: plt.Axes) -> None:
    """Plots -ELBO of N(0, ¼) for each draw, as the hierarchy's log-ratio and the diffusion's KLs.

    The model is the true reverse process.
    """
    schedule, std, n = Schedule.learned(lambda u: 9 - 18 * u, 40), 0.5, 4_000
    x0 = std * ops.randn((n, 1), seed=0, dtype=torch.float64)
    total = schedule.alpha**2 * std**2 + schedule.sigma**2
    gain = torch.tensor(schedule.alpha * std**2 / total)
    best = optimal_variance(schedule, std**2 * schedule.sigma**2 / total)
    settings = {"prediction_type": "x0", "likelihood": "gaussian"}

    def network(x: Tensor, t: Tensor) -> Tensor:
        return gain[t][:, None] * x

    truth = 0.5 * (x0[:, 0] / std) ** 2 + 0.5 * math.log(2 * math.pi * std**2)
    chain = sum(
        DiffusionHVAE(network, schedule, variance=best, **settings).bound(x0, seed=1).values()
    )
    kls = elbo(network, x0, schedule, variance=best, seed=1, **settings).total()
    axis.plot(truth, kls, ".", ms=2, color=GREY, label="diffusion, KLs")
    axis.plot(truth, chain, ".", ms=2, color=RED, label="hierarchy, log-ratios")
    axis.set(
        xlabel="−ln p(x)",
        ylabel="bound by one draw, nats",
        title="a diffusion as a hierarchy of 40 levels",
    )
    axis.legend(frameon=False, fontsize=7, markerscale=4)
    print(
        f"mean -ln p {truth.mean():.4f}, hierarchy {chain.mean():.4f} (off by at most"
        f" {(chain - truth).abs().max():.4f}), KLs {kls.mean():.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a hierarchy trained on Fashion-MNIST"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = load_system(arguments.model)
    assert isinstance(model, HVAE)
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 4.2), layout="constrained", width_ratios=(1.3, 0.8, 1)
    )
    levels(axes[0], model)
    costs(axes[1], model)
    diffusion(axes[2])
    for axis in axes:
        axis.title.set_fontsize(9)
    figure.savefig(arguments.out / "hvae.png", dpi=90)


if __name__ == "__main__":
    main()
