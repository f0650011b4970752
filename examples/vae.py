"""Draws the pictures of docs/theory/vae.md: small VAEs of the plane, and one of Fashion-MNIST.

    python examples/vae.py [--model out/vae] [--out docs/theory/figures]

The first takes two minutes on one core. The second needs a model folder that `fastdiff train
--model vae` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import torch

from fastdiff.data import load_fashion_mnist, load_toy
from fastdiff.pretrained import load_system
from fastdiff.theory.variational import VAE, iwae, log_weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

STEPS, BATCH, SIDE = 2_000, 128, 80


def train(name: str, **options: Any) -> VAE:
    data = load_toy(name, n=8_000)
    torch.manual_seed(0)
    vae = VAE(
        (2,),
        2,
        network="mlp",
        widths=(64, 64),
        likelihood="gaussian",
        initial_std=0.15,
        min_log_std=-3.0,
        **options,
    )
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / STEPS)
        ids = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data.points)
        optimizer.zero_grad()
        vae.loss(data.points[ids], seed=0, sample_ids=ids, step=step).mean().backward()
        optimizer.step()
    return vae


@torch.no_grad()
def toys(path: Path) -> None:
    """Plots densities (by 256 importance weights), samples, and latents of held-out points."""
    many = {"objective": "importance", "samples": 16}
    rows: list[tuple[str, dict[str, Any]]] = [
        ("moons", {}),
        ("moons", {"prior": "mixture", "components": 8}),
        ("moons", many),
        ("swiss-roll", many),
    ]
    figure, axes = plt.subplots(4, 4, figsize=(7.6, 7.6), layout="constrained")
    for axis, (name, options) in zip(axes, rows, strict=True):
        held_out = load_toy(name, "test", n=1_000)
        with torch.enable_grad():
            vae = train(name, **options)
        side = torch.linspace(-2.4, 2.4, SIDE)
        grid = torch.cartesian_prod(side, side)
        truth = held_out.log_density(grid).exp().view(SIDE, SIDE).T
        model = iwae(log_weights(vae, grid, samples=256, seed=0)).exp().view(SIDE, SIDE).T
        for part, density in zip(axis[:2], (truth, model), strict=True):
            part.pcolormesh(
                side, side, density, cmap="Blues", vmax=float(truth.max()), rasterized=True
            )
        points = vae.sample(1_000, seed=1)
        axis[2].scatter(*points.T, s=2, color="#1b6ca8", linewidths=0)
        z = vae.posterior(held_out.points).mean
        axis[3].scatter(*z.T, s=2, c=held_out.labels, cmap="coolwarm", linewidths=0)
        terms = vae.bound(held_out.points, seed=2, samples=32, importance=False)
        elbo = -float((terms["reconstruction"] + terms["kl"]).mean())
        log_p = float(iwae(log_weights(vae, held_out.points, samples=512, seed=3)).mean())
        best = float(held_out.log_density(held_out.points).mean())
        trained = "IWAE₁₆" if options is many else f"ELBO, {options.get('prior', 'normal')} prior"
        print(
            f"{name}, trained by the {trained}: ELBO {elbo:.3f}, IWAE_512 {log_p:.3f}, data"
            f" {best:.3f} nats"
        )
        axis[0].set_ylabel(name, fontsize=8)
        axis[1].set_ylabel(f"trained by {trained}", fontsize=7)
        for part in axis[:3]:
            part.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4))
        for part in axis:
            part.set(xticks=[], yticks=[], aspect="equal")
        axis[3].set(xlim=(-5, 5), ylim=(-5, 5))
    for part, title in zip(
        axes[0], ("data's density", "model's density", "samples", "μ(x), held out"), strict=True
    ):
        part.set_title(title, fontsize=9)
    figure.savefig(path, dpi=90)


@torch.no_grad()
def images(folder: Path, path: Path) -> None:
    """Plots held-out images, reconstructions, samples, and an interpolation between two latents."""
    vae, data = load_system(folder), load_fashion_mnist("bundled-test")
    x, _ = data.batch(torch.arange(12))
    z = vae.posterior(x).mean  # type: ignore[operator]
    between = torch.lerp(z[:1], z[2:3], torch.linspace(0, 1, 12)[:, None])
    sampled = vae.sample(12, seed=0, mean=True)  # type: ignore[operator]
    rows = {
        "held out": x,
        "reconstruction": vae.reconstruct(x),  # type: ignore[operator]
        "mean of p(x|z), z ~ p(z)": sampled,
        "draw of p(x|z), same z": vae.sample(12, seed=0),  # type: ignore[operator]
        "between two latents": vae.decode(between).mean,  # type: ignore[operator]
    }
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 4.1), layout="constrained")
    for axis, (title, row) in zip(axes, rows.items(), strict=True):
        axis.imshow(torch.cat(list(row[:, 0].clamp(-1, 1)), dim=1), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=8, loc="left", pad=2)
        axis.axis("off")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="folder of a VAE trained on Fashion-MNIST; without it, only the plane",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.model is not None:
        images(arguments.model, arguments.out / "vae_images.png")
    toys(arguments.out / "vae.png")


if __name__ == "__main__":
    main()
