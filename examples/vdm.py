"""Draws the pictures of docs/theory/vdm.md: paths of gamma, forms of the bound, a trained model.

python examples/vdm.py [--out docs/theory/figures] [--steps 2000]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from fastdiff import Sampler, Schedule, ops, prediction
from fastdiff.data import load_toy
from fastdiff.theory.likelihood import elbo, elbo_two_variable, optimal_variance, steps
from fastdiff.theory.variational import (
    VDM,
    CosineGamma,
    LearnedGamma,
    LinearGamma,
    diffusion_terms,
    times,
)
from fastdiff.theory.variational.gamma import Gamma, point

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, RED, GREEN, GREY = "#1b6ca8", "#d1495b", "#3c9d6b", "#888888"
LOW, HIGH, STD = -10.0, 6.0, 0.5


def optimal(z: Tensor, gamma_t: Tensor) -> Tensor:
    """Returns the optimal eps^ for data N(0, STD²)."""
    alpha, sigma = (v[:, None] for v in point(gamma_t))
    return (sigma * z.double() / (alpha**2 * STD**2 + sigma**2)).to(z.dtype)


def learned_path() -> LearnedGamma:
    """Returns a gamma with a path trained by the variance and fixed end points."""
    gamma = LearnedGamma(LOW, HIGH)
    optimizer = torch.optim.Adam(
        [p for name, p in gamma.named_parameters() if not name.startswith("gamma")], lr=0.05
    )
    for step in range(400):
        x0 = STD * ops.randn((256, 16), seed=step, stream=0)
        u = times.draw("stratified", torch.arange(256), seed=0, step=step)
        optimizer.zero_grad()
        diffusion_terms(optimal, x0, gamma, u, seed=step, variance_path=1.0).mean().backward()
        optimizer.step()
    return gamma


def paths(out: Path) -> None:
    gammas: dict[str, tuple[Gamma, str]] = {
        "linear": (LinearGamma(LOW, HIGH), BLUE),
        "cosine": (CosineGamma(LOW, HIGH), RED),
        "learned": (learned_path(), GREEN),
    }
    closed = 8 * (math.log1p(STD**2 * math.exp(-LOW)) - math.log1p(STD**2 * math.exp(-HIGH)))
    u, n = torch.linspace(0, 1, 401, dtype=torch.float64), 40_000
    x0 = STD * ops.randn((n, 16), seed=1)
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.9))
    for name, (gamma, color) in gammas.items():
        with torch.no_grad():
            at, slope = gamma(u)
            power = STD**2 * torch.exp(-at)
            value = diffusion_terms(
                optimal, x0, gamma, times.draw("uniform", torch.arange(n), seed=3, step=0), seed=2
            )
        axes[0].plot(u, at, color=color, label=name)
        axes[1].plot(u, 8 * slope * power / (1 + power), color=color)
        axes[2].hist(
            value.numpy(),
            bins=60,
            range=(0, 260),
            color=color,
            histtype="step",
            density=True,
            label=f"{name}: {value.mean():.1f}, std {value.std():.0f}",
        )
        print(
            f"{name:8s} mean {value.mean():.2f} (closed form {closed:.2f}), std {value.std():.2f}"
            " nats"
        )
    axes[0].set(xlabel="t", title="γ(t) = −ln SNR, equal end points")
    axes[1].set(
        xlabel="t", title="mean loss at t, 16 dimensions, nats", yscale="log", ylim=(1, 5e3)
    )
    axes[1].axhline(closed, color=GREY, lw=0.8, ls=":")
    axes[2].axvline(closed, color=GREY, lw=0.8, ls=":")
    axes[2].set(xlabel="nats", yticks=[], title="loss at one random t")
    axes[0].legend(frameon=False, fontsize=7)
    axes[2].legend(frameon=False, fontsize=7)
    save(figure, out / "vdm_paths.png")


class Optimal:
    """The optimal x0-prediction of N(0, STD²) under a schedule."""

    def __init__(self, schedule: Schedule):
        self.gain = torch.tensor(
            schedule.alpha * STD**2 / (schedule.alpha**2 * STD**2 + schedule.sigma**2)
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return (self.gain[t].view(-1, 1) * x.double()).to(x.dtype)


def two_forms(out: Path) -> None:
    """Plots the spread of the bound by KLs and by log-ratios, and its value as an expected KL."""
    sizes, n = [5, 10, 20, 50, 100, 200, 500, 1000], 4_000
    x0 = STD * ops.randn((n, 1), seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    spread: dict[str, list[float]] = {"KL form": [], "log-ratio form": []}
    right, wrong = [], []
    for size in sizes:
        schedule = Schedule.learned(lambda u: 9 - 15 * u, size)
        arguments = {
            "prediction_type": "x0",
            "variance": "fixed_small",
            "likelihood": "gaussian",
            "seed": 1,
        }
        t = torch.randint(0, size - 1, (n, 1), generator=generator)
        one = elbo(Optimal(schedule), x0, schedule, times=t + 1, **arguments).total(scale=size - 1)
        two = elbo_two_variable(Optimal(schedule), x0, schedule, times=t, **arguments)
        spread["KL form"].append(one.std().item())
        spread["log-ratio form"].append(two.std().item())
        mmse = STD**2 * schedule.sigma**2 / (schedule.alpha**2 * STD**2 + schedule.sigma**2)
        best = optimal_variance(schedule, mmse)
        tight = (
            elbo(Optimal(schedule), x0, schedule, **arguments | {"variance": best})
            .total()
            .mean()
            .item()
        )
        step = steps(schedule)
        gain = (
            step.mean_x0
            * schedule.alpha
            * STD**2
            / (schedule.alpha**2 * STD**2 + schedule.sigma**2)
            + step.mean_x
        )[1:]
        right.append(tight)
        wrong.append(tight + float((gain * step.alpha[1:] * step.variance[:-1] / best[1:]).sum()))
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.9))
    for (name, values), color in zip(spread.items(), (BLUE, RED), strict=True):
        axes[0].loglog(sizes, values, "o-", ms=3, color=color, label=name)
    axes[0].set(xlabel="T", title="std of the bound by one random t, nats")
    entropy = 0.5 * math.log(2 * math.pi * math.e * STD**2)
    axes[1].axhline(entropy, color=GREY, lw=0.8, ls=":")
    axes[1].text(200, entropy + 0.15, "−E ln p(x0)", fontsize=7, color=GREY)
    axes[1].semilogx(sizes, right, "o-", ms=3, color=BLUE, label="bound, optimal variance")
    axes[1].semilogx(sizes, wrong, "s--", ms=3, color=RED, label="written as an expected KL")
    axes[1].set(xlabel="T", yscale="symlog", title="nats, one dimension")
    for axis in axes:
        axis.legend(frameon=False, fontsize=7)
    print(
        "T",
        sizes,
        "KL form",
        np.round(spread["KL form"], 1),
        "log-ratio",
        np.round(spread["log-ratio form"], 1),
    )
    print("tight", np.round(right, 3), "expected KL", np.round(wrong, 1), f"entropy {entropy:.3f}")
    save(figure, out / "vdm_two_forms.png")


def plane(out: Path, steps_: int) -> None:
    """Trains a VDM on the two moons; plots its terms over log-SNR, its score field and samples."""
    torch.manual_seed(0)
    data, held_out = load_toy("moons"), load_toy("moons", "test")
    vdm = VDM(data.shape, likelihood="gaussian", widths=[32])
    optimizer = torch.optim.Adam(vdm.parameters(), lr=2e-3)
    for step in range(steps_):
        ids = torch.arange(step * 256, (step + 1) * 256) % data.examples
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / steps_))
        optimizer.zero_grad()
        vdm.loss(data.batch(ids)[0], seed=0, sample_ids=ids, step=step).mean().backward()
        torch.nn.utils.clip_grad_norm_(vdm.parameters(), 1.0)
        optimizer.step()
    x, _ = held_out.batch(torch.arange(4_000))
    timed, entropy = vdm.terms(x, seed=1, times=32), -held_out.log_density(x).mean().item()
    total = sum(timed.bound.values()).mean().item()
    print(
        f"moons: bound {total:.3f} nats, entropy {entropy:.3f}",
        {k: round(v.mean().item(), 3) for k, v in timed.bound.items()},
    )
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9))
    axes[0].plot(timed.log_snr.mean(0), timed.denoising.mean(0), "o-", ms=3, color=BLUE)
    axes[0].set(
        xlabel="ln SNR",
        ylim=(0, None),
        title=f"denoising terms; bound {total:.2f}, entropy {entropy:.2f}",
    )
    axes[0].title.set_fontsize(8)
    grid = torch.stack(
        torch.meshgrid(torch.linspace(-2.2, 2.2, 17), torch.linspace(-2.2, 2.2, 17), indexing="xy"),
        -1,
    ).view(-1, 2)
    for axis, gamma_t in zip(axes[1:3], (0.0, -3.0), strict=True):
        at = torch.full((len(grid),), gamma_t, dtype=torch.float64)
        alpha, sigma = point(at)
        with torch.no_grad():
            output = vdm.predict(grid, at)
        wide = [v.float()[:, None] for v in (alpha, sigma)]
        score = prediction.convert(vdm.prediction_type, "score", output, grid, *wide)
        noised = ops.q_sample(x[:600], None, alpha[:1].expand(600), sigma[:1].expand(600), seed=3)
        axis.scatter(*noised.T, s=1, color=GREY, alpha=0.4)
        axis.quiver(*grid.T, *score.T, color=BLUE, width=0.004)
        axis.set(
            title=f"score at γ = {gamma_t:g}",
            xticks=[],
            yticks=[],
            xlim=(-2.5, 2.5),
            ylim=(-2.5, 2.5),
        )
    network, schedule, settings = vdm.for_sampler(200)
    drawn = Sampler(network, schedule, solver="ddpm", steps=200, **settings).sample(
        (2_000, 2), seed=0
    )
    axes[3].scatter(*drawn.T, s=1, color=RED, alpha=0.5)
    axes[3].set(title="samples", xticks=[], yticks=[], xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    save(figure, out / "vdm_moons.png")


def save(figure: plt.Figure, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path, f"{path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/theory/figures"))
    parser.add_argument("--steps", type=int, default=2_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    paths(arguments.out)
    two_forms(arguments.out)
    plane(arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
