"""The figures of docs/theory/score.md: Langevin paths, a learned score, SDE and ODE, a corrector.

python examples/score.py [--out docs/theory/figures]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from fastdiff import Schedule
from fastdiff.data import Toy, load_toy
from fastdiff.theory.score import (
    VPSDE,
    ScoreModel,
    annealed_langevin,
    langevin,
    network_for,
    predictor_corrector,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, RED, GREEN, GREY = "#1b6ca8", "#d1495b", "#3c9d6b", "#888888"
STEPS, BATCH = 1_000, 512


class Mixture:
    """Σ w_k N(m_k, s² I) blurred by noise: its score, and its exact eps as a network.

    The network's time is the log-SNR.
    """

    def __init__(self, weights: list[float], means: list[list[float]], std: float):
        self.weights, self.means, self.std = torch.tensor(weights), torch.tensor(means), std

    def network_time(self, point: object) -> float:
        return point.log_snr  # type: ignore[attr-defined, no-any-return]

    def score(
        self, x: Tensor, alpha: Tensor | float = 1.0, variance: Tensor | float = 0.0
    ) -> Tensor:
        """grad ln p at x of alpha x0 + sqrt(variance) eps."""
        total = torch.as_tensor(alpha) ** 2 * self.std**2 + variance
        off = torch.as_tensor(alpha)[..., None] * self.means - x[:, None]
        share = torch.softmax(self.weights.log() - 0.5 * off.square().sum(2) / total, dim=1)
        return (share[..., None] * off).sum(1) / total

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = torch.sigmoid(t).sqrt()[:, None], torch.sigmoid(-t).sqrt()[:, None]
        return -sigma * self.score(x, alpha, sigma**2)


def train(name: str = "moons") -> tuple[ScoreModel, Toy]:
    """Trains a score model of points in the plane by likelihood: half a minute on one core."""
    torch.manual_seed(0)
    data = load_toy(name, n=20_000)
    model = ScoreModel(
        network_for((2,), width=128, depth=3),
        likelihood="gaussian",
        log_snr_max=7.0,
        times="stratified",
    )
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for step in range(STEPS):
        ids = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data.points)
        optimizer.zero_grad()
        model.loss(data.points[ids], seed=0, sample_ids=ids, step=step).mean().backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / STEPS)
    return model.eval(), data


def arrows(
    axis: plt.Axes, score: Callable[[Tensor], Tensor], edge: float, color: str = GREY
) -> None:
    """Draws a vector field on a grid, with arrow lengths proportional to the root of its size."""
    side = torch.linspace(-edge, edge, 22)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        s = score(grid)
    s = s / s.norm(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    axis.quiver(*grid.T, *s.T, color=color, width=0.003, angles="xy")
    axis.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")


def paths(axis: plt.Axes) -> None:
    """Langevin paths from one point: the noise selects the mode that a path finds."""
    mixture = Mixture([0.2, 0.2, 0.6], [[-1.5, 1.0], [1.5, 1.0], [0.0, -1.5]], 0.55)
    arrows(axis, mixture.score, 3.0)
    for i, color in enumerate((BLUE, RED, GREEN)):
        states = [torch.tensor([[0.0, 0.4]])]
        langevin(
            mixture.score,
            states[0],
            steps=250,
            step_size=0.012,
            seed=11,
            sample_ids=torch.tensor([i]),
            watch=lambda _, x, states=states: states.append(x),
        )
        axis.plot(*torch.cat(states).T, color=color, lw=0.9)
    axis.plot(0.0, 0.4, "ko", ms=4)
    axis.set_title("x ← x + c·score + √2c·z from one point")


def shares(axis: plt.Axes) -> None:
    """Two modes of weights nine to one.

    Langevin dynamics divides the samples by where they start, annealing by the weights.
    """
    mixture = Mixture([0.9, 0.1], [[-4.0, 0.0], [4.0, 0.0]], 0.5)
    n, schedule = 1_500, Schedule.ve(100, sigma_min=0.1, sigma_max=30.0)
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * 4
    plain = langevin(mixture.score, start, steps=640, step_size=0.02, seed=1)

    class Blurred(Mixture):  # the schedule has alpha = 1
        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            variance = torch.exp(-t)[:, None]
            return -variance.sqrt() * self.score(x, 1.0, variance)

    blurred = Blurred([0.9, 0.1], [[-4.0, 0.0], [4.0, 0.0]], 0.5)
    annealed = annealed_langevin(blurred, schedule, (n, 2), levels=40, steps=16, snr=0.2, seed=1)
    right = [0.1, *(float((x[:, 0] > 0).float().mean()) for x in (plain, annealed))]
    for y, (value, color) in enumerate(zip(right, (GREY, RED, BLUE), strict=True)):
        axis.barh(y, 1 - value, color=color, alpha=0.9)
        axis.barh(y, value, left=1 - value, color=color, alpha=0.4)
        axis.text(0.02, y, f"{1 - value:.2f} : {value:.2f}", va="center", color="white")
    axis.set(
        yticks=range(3),
        yticklabels=["weights", "Langevin", "annealed"],
        xlim=(0, 1),
        xticks=[0, 0.5, 1],
    )
    axis.invert_yaxis()
    axis.set_title("samples at the left and the right mode")


def learned(axis: plt.Axes, model: ScoreModel, data: Toy) -> None:
    """The learned score of moons at sigma/alpha = 0.3, and the data."""
    point = model.schedule.at_log_snr(-2 * math.log(0.3))
    time = model.network_time(point)

    def score(x: Tensor) -> Tensor:
        v = model(point.alpha * x, torch.full((len(x),), time))
        return -(point.sigma * point.alpha * x + point.alpha * v) / point.sigma

    axis.plot(*data.points[:1500].T, ".", ms=1.5, color=RED, alpha=0.5)
    arrows(axis, score, 2.6, BLUE)
    axis.set_title("a learned score at σ/α = 0.3")


def reverse(sde_axis: plt.Axes, ode_axis: plt.Axes) -> None:
    """p_t of a mixture on the line, with paths of the reverse SDE and the probability flow."""
    sde, mixture = VPSDE(), Mixture([0.35, 0.65], [[-1.2], [1.0]], 0.25)

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.float()[:, None] for v in sde.marginal(t))
        return mixture.score(x, alpha, sigma**2)

    times, n = torch.linspace(1.0, 1e-3, 500, dtype=torch.float64), 14
    start = torch.linspace(-1.9, 1.9, n)[:, None]
    x_axis = np.linspace(-3, 3, 300)
    density = []
    for t in times.tolist():
        alpha, sigma = (float(v) for v in sde.marginal(t))
        total = alpha**2 * mixture.std**2 + sigma**2
        parts = [
            w * np.exp(-0.5 * (x_axis - alpha * m) ** 2 / total) / math.sqrt(total)
            for w, (m,) in zip(mixture.weights.tolist(), mixture.means.tolist(), strict=True)
        ]
        density.append(sum(parts))
    generator = torch.Generator().manual_seed(3)
    for axis, eta, title in ((sde_axis, 1.0, "reverse SDE"), (ode_axis, 0.0, "probability flow")):
        back, x, states = sde.reverse(score, eta), start, [start]
        for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            noise = (
                torch.randn(x.shape, generator=generator)
                * float(back.diffusion(t))
                * math.sqrt(t - s)
            )
            x = x - (t - s) * back.drift(x, t) + noise
            states.append(x)
        axis.pcolormesh(
            times,
            x_axis,
            np.sqrt(np.array(density)).T,
            cmap="Greys",
            shading="nearest",
            rasterized=True,
        )
        axis.plot(times, torch.cat(states, 1).T, color=BLUE if eta else RED, lw=0.8)
        axis.set(xlim=(1, 0), ylim=(-3, 3), xlabel="t, from noise to data", title=title)


def corrected(axis: plt.Axes) -> None:
    """The error of the standard deviation of samples of N(0, s² I), with and without a corrector.

    It is drawn over the number of predictor steps, for the exact score.
    """
    dims, n, std, schedule = 32, 1_000, 0.25, Schedule.vp(1000)
    gaussian = Mixture([1.0], [[0.0] * dims], std)
    levels = [5, 10, 20, 40, 80]
    for corrector, color, label in (
        (0, RED, "predictor alone"),
        (1, BLUE, "1 corrector step"),
        (4, GREEN, "4 corrector steps"),
    ):
        found = [
            predictor_corrector(
                gaussian,
                schedule,
                (n, dims),
                steps=k,
                corrector_steps=corrector,
                snr=0.25,
                seed=0,
                timestep_spacing="exponential",
            )
            for k in levels
        ]
        axis.plot(
            levels,
            [abs(float(x.std()) / std - 1) for x in found],
            "o-",
            ms=3,
            color=color,
            label=label,
        )
    axis.axhline(1 / math.sqrt(2 * n * dims), color=GREY, lw=1, label="one standard error")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="steps of the predictor",
        title="error of the deviation, |std/s − 1|",
    )
    axis.set_xticks(levels, [str(k) for k in levels])
    axis.xaxis.minorticks_off()
    axis.legend(frameon=False, fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    paths(axes[0])
    shares(axes[1])
    learned(axes[2], *train())
    figure.savefig(out / "score.png", dpi=80)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    reverse(axes[0], axes[1])
    corrected(axes[2])
    figure.savefig(out / "score_sde.png", dpi=80)


if __name__ == "__main__":
    main()
