"""Draws the pictures of docs/theory/marginal_likelihood.md: bounds on log p(x), and objectives.

python examples/marginal_likelihood.py [--out docs/theory/figures]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch

from fastdiff.data import load_toy
from fastdiff.theory.information import Gaussian
from fastdiff.theory.variational import (
    VAE,
    ProbabilisticPCA,
    gradient_moments,
    iwae,
    log_weights,
    objective,
)
from fastdiff.theory.variational.bounds import effective_sample_size
from fastdiff.theory.variational.objectives import OBJECTIVES

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOR = {"prior": "#d1495b", "importance": "#1b6ca8", "elbo": "#3c9d6b"}
STEPS, DRAWS, BATCH, EVERY = 800, 16, 128, 80


def bounds(axis: plt.Axes) -> None:
    """Plots log p >= IWAE_K >= ELBO for two proposals, on a model with known log p(x)."""
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0] * torch.tensor(
        [2.0, 1.5], dtype=torch.float64
    )
    model = ProbabilisticPCA(weight, torch.zeros(6, dtype=torch.float64), 0.5)
    x = model.sample(64, seed=0)
    q = model.posterior(x)
    wide = Gaussian(q.mean + 0.3, q.logvar + 0.8)  # an encoder with wrong means that is too wide
    sizes = [2**k for k in range(13)]
    for proposal, label, color in (
        (wide, "encoder", COLOR["importance"]),
        ("prior", "prior", COLOR["prior"]),
    ):
        log_w = log_weights(model, x, samples=sizes[-1] * 4, seed=1, proposal=proposal)
        axis.plot(
            sizes,
            [iwae(log_w, k).mean() for k in sizes],
            "o-",
            ms=3,
            color=color,
            label=f"IWAE, {label} proposes",
        )
    axis.axhline(
        model.elbo(x, wide).mean(), color=COLOR["elbo"], lw=1, ls="--", label="ELBO, closed form"
    )
    axis.axhline(model.log_prob(x).mean(), color="black", lw=1, label="log p(x), closed form")
    axis.set(
        xscale="log",
        xlabel="draws K",
        ylabel="nats",
        ylim=(-13, -5.5),
        title="bounds rise to log p(x)",
    )
    axis.legend(frameon=False, fontsize=7, loc="lower right")


def dimensions(axis: plt.Axes) -> None:
    """Plots the quality of 4,096 draws of the prior over the dimension, for x = 2z + eps/2."""
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    quality: list[tuple[float, float]] = []
    for latent in sizes:
        model = ProbabilisticPCA(
            2.0 * torch.eye(latent, dtype=torch.float64), torch.zeros(latent).double(), 0.5
        )
        x = model.sample(64, seed=2)
        log_w = log_weights(model, x, samples=4_096, seed=1, proposal="prior")
        deficit = (model.log_prob(x) - iwae(log_w)).mean().item()
        quality.append((effective_sample_size(log_w).median().item(), max(deficit, 1e-3)))
    ess, deficits = zip(*quality, strict=True)
    axis.plot(
        sizes, ess, "o-", ms=3, color=COLOR["importance"], label="effective sample size of 4,096"
    )
    axis.plot(sizes, deficits, "o-", ms=3, color=COLOR["prior"], label="log p(x) − estimate, nats")
    axis.axhline(1, color="#888888", lw=0.8)
    axis.set(yscale="log", xlabel="latent dimension", title="draws of the prior fail")
    axis.legend(frameon=False, fontsize=7)


class Curve(NamedTuple):
    steps: list[int]
    evidence: list[float]  # log p(x) of held-out points, nats
    noise: list[float]  # √(tr Cov g)/|E g| of the decoder's gradient


def train(name: str) -> Curve:
    """Trains a VAE of the moons by one objective with DRAWS draws.

    Its evidence is estimated by 4,096 draws of the prior.
    """
    data, held_out = load_toy("moons", n=4_000), load_toy("moons", "test", n=64).points
    torch.manual_seed(0)
    vae = VAE(
        (2,),
        2,
        network="mlp",
        widths=(64, 64),
        likelihood="gaussian",
        objective=name,
        samples=DRAWS,
        initial_std=0.15,
        min_log_std=-3.0,
    )
    optimizer = torch.optim.Adam(vae.parameters(), 2e-3)
    curve, fixed = Curve([], [], []), data.points[:BATCH]
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            noisy = lambda seed: objective(vae, fixed, name, samples=DRAWS, seed=seed)  # noqa: E731
            moments = gradient_moments(vae.decoder.parameters(), noisy, range(12))
            with torch.no_grad():
                log_p = iwae(
                    log_weights(vae, held_out, samples=4_096, seed=9, proposal="prior")
                ).mean()
            curve.steps.append(step)
            curve.evidence.append(float(log_p))
            curve.noise.append(moments.std / max(moments.norm, 1e-12))
        ids = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data.points)
        optimizer.zero_grad()
        vae.loss(data.points[ids], seed=0, sample_ids=ids, step=step).mean().backward()
        optimizer.step()
    return curve


def trainings(axes: list[plt.Axes]) -> None:
    labels = {
        "prior": "log mean p(x|z), z ~ p(z)",
        "importance": "log mean w, z ~ q(z|x)",
        "elbo": "mean log w, z ~ q(z|x)",
    }
    for name in OBJECTIVES:
        curve = train(name)
        axes[0].plot(curve.steps, curve.evidence, color=COLOR[name], label=labels[name])
        axes[1].plot(curve.steps, curve.noise, color=COLOR[name], label=labels[name])
        print(
            f"{name:11s} log p {curve.evidence[-1]:.3f} nats, gradient noise"
            f" {sum(curve.noise[-5:]) / 5:.2f}"
        )
    held_out = load_toy("moons", "test", n=64)
    entropy = held_out.log_density(held_out.points).mean()
    axes[0].axhline(entropy, color="black", lw=1, label="density of the data")
    print(f"data        log p {entropy:.3f} nats")
    axes[0].set(
        xlabel="steps",
        ylabel="held-out log p(x), nats",
        ylim=(-4, -1),
        title=f"three objectives, K = {DRAWS}",
    )
    axes[1].set(
        xlabel="steps",
        yscale="log",
        ylabel="deviation / norm",
        title="noise of the decoder's gradient",
    )
    axes[0].legend(frameon=False, fontsize=7, loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, parts in (("marginal_likelihood", (bounds, dimensions)), ("objectives", None)):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        if parts is None:
            trainings(list(axes))
        else:
            for draw, axis in zip(parts, axes, strict=True):
                draw(axis)
        for axis in axes:
            axis.title.set_size(10)
            axis.tick_params(labelsize=8)
        figure.savefig(out / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
