"""Draws the picture of docs/theory/information.md: entropy, both directions of KL, Monte Carlo.

python examples/information.py [--out docs/theory/figures]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch

from fastdiff.theory import information
from fastdiff.theory.information import Gaussian, Sampled

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, RED, GREY = "#1b6ca8", "#d1495b", "#888888"


def coin(axis: plt.Axes) -> None:
    p = torch.linspace(0, 1, 401, dtype=torch.float64)
    sides = torch.stack([p, 1 - p], dim=1)
    axis.plot(
        p,
        information.surprise(p.clamp(min=1e-3), unit="bits"),
        color=GREY,
        lw=1,
        label="surprise of heads",
    )
    axis.plot(p, information.entropy(sides, unit="bits"), color=BLUE, label="entropy H(p)")
    loaded = torch.tensor([0.8, 0.2], dtype=torch.float64)
    axis.plot(
        p,
        information.cross_entropy(sides, loaded, unit="bits"),
        color=RED,
        label="H(p, q), q = (0.8, 0.2)",
    )
    axis.plot(0.8, information.entropy(loaded, unit="bits"), "o", color=RED, ms=4)
    axis.set(ylim=(0, 2.6), xlabel="probability of heads", ylabel="bits", title="a coin")
    axis.legend(frameon=False, fontsize=7)


def directions(axis: plt.Axes) -> None:
    """Plots the Gaussian closest to two bumps for both directions of KL.

    The divergences are computed by quadrature and minimised by gradient steps.
    """
    x = torch.linspace(-8, 8, 1601, dtype=torch.float64)[:, None]
    bumps = [
        Gaussian(torch.tensor([[m]]).double(), torch.tensor([[0.0]]).double()) for m in (-2.2, 2.2)
    ]
    log_p = torch.logaddexp(
        bumps[0].log_prob(x) + torch.tensor(0.7).log(),
        bumps[1].log_prob(x) + torch.tensor(0.3).log(),
    )
    axis.fill_between(x[:, 0], log_p.exp(), color=GREY, alpha=0.3, lw=0, label="p")
    p = log_p - torch.logsumexp(log_p, 0)
    for color, label, forward in ((BLUE, "min KL(p‖q)", True), (RED, "min KL(q‖p)", False)):
        values = [torch.tensor([[v]], dtype=torch.float64, requires_grad=True) for v in (-1.0, 0.0)]
        optimizer = torch.optim.Adam(values, 0.05)
        for _ in range(400):
            optimizer.zero_grad()
            log_q = Gaussian(*values).log_prob(x)
            pair = (p, log_q) if forward else (log_q, p)  # grid cells as outcomes
            divergence = information.kl(*pair, logits=True)
            divergence.backward()
            optimizer.step()
        q = Gaussian(*(v.detach() for v in values)).log_prob(x).exp()
        axis.plot(x[:, 0], q, color=color, label=f"{label} = {divergence.item():.2f} nats")
    axis.set(xlabel="x", xlim=(-6, 6), ylim=(0, 0.44), yticks=[], title="two directions")
    axis.legend(frameon=False, fontsize=7, loc="upper right")


def monte_carlo(axis: plt.Axes) -> None:
    p = Gaussian(torch.zeros(1, 4).double(), torch.zeros(1, 4).double())
    q = Gaussian(torch.full((1, 4), 0.5).double(), torch.full((1, 4), -0.6).double())
    exact = information.kl(p, q).item()
    sizes = [2**k for k in range(4, 17)]
    runs = [information.kl(Sampled(p.log_prob, p.sample), q, samples=n, seed=1) for n in sizes]
    value, error = (
        torch.stack([getattr(r, name)[0] for r in runs]) for name in ("value", "stderr")
    )
    axis.axhline(exact, color=GREY, lw=1, label="closed form")
    axis.errorbar(
        sizes,
        value,
        2 * error,
        color=BLUE,
        fmt="o",
        ms=3,
        lw=1,
        label="Monte Carlo ± 2 standard errors",
    )
    axis.set(xscale="log", xlabel="draws", ylabel="KL(p‖q), nats", title="an expectation by draws")
    axis.legend(frameon=False, fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for draw, axis in zip((coin, directions, monte_carlo), axes, strict=True):
        draw(axis)
        axis.title.set_size(10)
        axis.tick_params(labelsize=8)
    figure.savefig(out / "information.png", dpi=110)


if __name__ == "__main__":
    main()
