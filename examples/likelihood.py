"""The figures of docs/theory/likelihood.md: a learned density, its evaluations, and probes.

python examples/likelihood.py [--out docs/theory/figures]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from score import BLUE, GREY, RED, train  # examples/score.py

from fastdiff import Schedule
from fastdiff.data import Toy, load_toy
from fastdiff.theory.likelihood import nll
from fastdiff.theory.score import ScoreModel

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

EDGE, SIDE = 2.4, 64


def maps(axes: list[plt.Axes], model: ScoreModel, data: Toy) -> None:
    """p(x) of the data and of the flow on a grid, and the evaluations of each grid point."""
    side = torch.linspace(-EDGE, EDGE, SIDE)
    grid = torch.cartesian_prod(side, side)
    got = nll(x=grid, **model.for_likelihood(), divergence="exact")
    truth = data.log_density(grid)
    pictures = [
        ("p(x) of the data", truth.exp(), "Blues"),
        ("p(x) of the probability flow", (-got.nats).exp(), "Blues"),
        (f"evaluations, {int(got.nfe.min())} to {int(got.nfe.max())}", got.nfe.double(), "viridis"),
    ]
    top = float(truth.exp().max())
    for axis, (title, values, colors) in zip(axes, pictures, strict=True):
        limits = {"vmin": 0, "vmax": top} if colors == "Blues" else {}
        axis.imshow(
            values.reshape(SIDE, SIDE).T.flip(0),
            cmap=colors,
            extent=(-EDGE, EDGE, -EDGE, EDGE),
            **limits,
        )
        axis.set(title=title, xticks=[], yticks=[])
    held = load_toy("moons", "test", n=1_000)
    found = nll(x=held.points, **model.for_likelihood(), divergence="exact")
    excess = found.nats + held.log_density(held.points)
    stderr = float(excess.std()) / math.sqrt(len(excess))
    print(
        f"KL of the flow to the data: {float(excess.mean()):.3f} ± {stderr:.3f} nats on 1,000"
        " held-out points"
    )
    bound = sum(
        model.bound(held.points, seed=0, sample_ids=torch.arange(1_000), times=256).values()
    )
    print(
        f"the bound is {float((bound - found.nats).mean()):.3f} nats above the probability flow's"
        " -ln p"
    )


def probes(axis: plt.Axes) -> None:
    """Standard errors over probes on correlated Gaussian data of 64 dimensions."""
    dims, generator = 64, torch.Generator().manual_seed(0)
    root = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / math.sqrt(dims)
    values, vectors = torch.linalg.eigh(root @ root.T + 0.3 * torch.eye(dims).double())

    class Gaussian:
        def network_time(self, point: object) -> float:
            return point.log_snr  # type: ignore[attr-defined, no-any-return]

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            alpha, sigma = (
                torch.sigmoid(t.double()).sqrt()[:, None],
                torch.sigmoid(-t.double()).sqrt()[:, None],
            )
            return sigma * ((x @ vectors) / (alpha**2 * values + sigma**2)) @ vectors.T

    x = torch.randn(8, dims, generator=generator, dtype=torch.float64) * values.sqrt() @ vectors.T
    counts = [2, 4, 8, 16, 32, 64]
    for kind, color in (("rademacher", BLUE), ("gaussian", RED)):
        got = [
            nll(Gaussian(), x, Schedule.vp(1000), divergence=kind, probes=n, seed=0).stderr.mean()
            for n in counts
        ]
        axis.plot(counts, np.array(got) / (dims * math.log(2)), "o-", ms=3, color=color, label=kind)
    shape = np.array(counts) ** -0.5
    axis.plot(
        counts,
        shape * 0.5 * float(got[0]) / (dims * math.log(2)),
        color=GREY,
        lw=0.8,
        label="1/√probes",
    )
    axis.set(xscale="log", yscale="log", xlabel="probes", title="standard error, bits/dim")
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.xaxis.minorticks_off()
    axis.legend(frameon=False, fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.3), layout="constrained")
    maps(list(axes[:3]), *train())
    probes(axes[3])
    figure.savefig(out / "likelihood.png", dpi=80)


if __name__ == "__main__":
    main()
