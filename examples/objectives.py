"""Trains every prediction type, weighting and loss of a denoiser on the moons and draws the bounds.

    python examples/objectives.py [--out docs/training] [--seeds 3] [--steps 1500]

A run takes half a minute on one core, and there are about 50. Finished runs are kept in
objectives.json, so that a script that was stopped continues, and the figure can be drawn again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from fastdiff import Schedule
from fastdiff.data import Toy, load_toy
from fastdiff.prediction import PREDICTION_TYPES
from fastdiff.theory.likelihood import elbo
from fastdiff.theory.systems import make
from fastdiff.theory.systems.presets import OBJECTIVES
from fastdiff.theory.variational.weights import TIMESTEP_WEIGHTINGS
from fastdiff.training import Settings, Trainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, RED, GREY = "#1b6ca8", "#d1495b", "#888888"
POINTS, TIMES = 1000, 64  # of the test set; timesteps of each
VARIANCES = ("fixed_small", "fixed_large")
# these train the same network with the same weights as another type, so they give the same bits
SAME = {
    "edm": "v",
    "score": "epsilon",
    "x0": "v",
    "weighting=simple": "epsilon",
    "weighting=v": "v",
}
BARE: dict[str, Any] = {"weighting": "output", "precondition": False}
# name: the options of a system `unet`
DEFAULT = {kind: {"prediction_type": kind} for kind in PREDICTION_TYPES}
DISTINCT = {kind: options for kind, options in DEFAULT.items() if kind not in SAME}
# of the other types it is the default
UNWEIGHTED = {f"{kind}, bare": {"prediction_type": kind, **BARE} for kind in OBJECTIVES}
WEIGHTED = {
    f"{kind}, bare, vlb": {"prediction_type": kind, "weighting": "vlb", "precondition": False}
    for kind in OBJECTIVES
}
OTHERS: dict[str, dict[str, Any]] = {
    **{
        f"weighting={name}": {"weighting": name}
        for name in TIMESTEP_WEIGHTINGS[1:]
        if f"weighting={name}" not in SAME
    },
    "times=stratified": {"times": "stratified"},
    "times=loss_aware": {"times": "loss_aware"},
    "loss=vlb": {"loss": "vlb"},
    "loss=hybrid": {"loss": "hybrid"},
}


def bounds(options: dict[str, Any], steps: int, seed: int) -> dict[str, float]:
    """Trains a denoiser; returns the bound on held-out points in nats, by the chain's variance."""
    train, test = load_toy("moons"), load_toy("moons", "test")
    torch.manual_seed(seed)
    system = make("unet", train, **options)
    trainer = Trainer(system, train, Settings(steps=steps, batch_size=256, lr=2e-3, seed=seed))
    while trainer.step < steps:
        trainer.train_step()
        system.record(system.pending())  # nothing is pending where the trainer has done so
    ids = torch.arange(POINTS)
    x0, _ = test.batch(ids)
    found = {}
    for variance in {*VARIANCES, system.variance}:
        terms = trainer.ema.bound(x0, seed=0, sample_ids=ids, times=TIMES, variance=variance)
        found[variance] = float(sum(v.double().mean() for v in terms.values()))
    return found


def optimum(data: Toy) -> dict[str, float]:
    """Returns the bounds of the exact E[x0|x_t] of the moons, by the chain's variance."""
    curves, schedule = data.curves, Schedule.cosine(1000)
    nodes, weights = np.polynomial.legendre.leggauss(curves.nodes)
    u = torch.from_numpy((nodes + 1) / 2).repeat(curves.number)
    prior = torch.from_numpy(np.log(weights / 2)).repeat(curves.number)
    centres = curves.centre(torch.arange(curves.number).repeat_interleave(curves.nodes), u)
    blur = curves.deviation**2
    alphas, sigmas = torch.tensor(schedule.alpha), torch.tensor(schedule.sigma)

    def mean(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = alphas[t][:, None], sigmas[t][:, None]
        variance = alpha**2 * blur + sigma**2
        distance = (x_t[:, None] - alpha[..., None] * centres).square().sum(2)
        centre = torch.softmax(prior - distance / (2 * variance), 1) @ centres
        return centre + blur * alpha / variance * (x_t - alpha * centre)

    ids = torch.arange(POINTS)
    x0, _ = data.batch(ids)
    t, scale = make("unet", data).spread_times(TIMES, 0, ids)
    found = {}
    for variance in VARIANCES:
        terms = elbo(
            mean,
            x0.double(),
            schedule,
            prediction_type="x0",
            variance=variance,
            times=t,
            seed=0,
            sample_ids=ids,
            likelihood="gaussian",
        )
        found[variance] = float(terms.total(scale).mean())
    return found


def median(results: dict[str, Any], name: str, variance: str = "fixed_small") -> float:
    """Returns the median over the seeds; NaN where there is no run."""
    name = SAME.get(name, name)
    values = [run[variance] for key, run in results.items() if key.rpartition(" / ")[0] == name]
    return statistics.median(values) if values else math.nan


def rows(results: dict[str, Any]) -> list[str]:
    """Returns the rows of the tables in docs/training/objectives.md."""

    def cells(name: str, *values: float) -> str:
        shown = (f"{value:.4g}" if math.isfinite(value) else "" for value in values)
        return f"| `{name}` | {' | '.join(shown)} |"

    found = []
    for kind in PREDICTION_TYPES:
        bare, weighted = f"{kind}, bare", f"{kind}, bare, vlb"
        plain = median(results, bare if bare in UNWEIGHTED else kind)
        default = (median(results, kind, variance) for variance in VARIANCES)
        found.append(cells(kind, plain, median(results, weighted), *default))
    for name in OTHERS:
        values = [median(results, name, variance) for variance in VARIANCES]
        if math.isfinite(values[0]):
            learned = name == "loss=hybrid"
            values.append(median(results, name, "learned_range") if learned else math.nan)
            found.append(cells(name, *values))
    return found


def draw(results: dict[str, Any], floor: dict[str, float], entropy: float, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))
    place = np.arange(len(PREDICTION_TYPES))
    bars = (
        ("bare network, weight 1 on its output", UNWEIGHTED, ", bare", GREY),
        ("bare network, the bound's weight", WEIGHTED, ", bare, vlb", RED),
        ("the default", DEFAULT, "", BLUE),
    )
    for number, (label, runs, suffix, colour) in enumerate(bars):
        names = [kind + suffix if kind + suffix in runs else kind for kind in PREDICTION_TYPES]
        values = [median(results, name) for name in names]
        if suffix.endswith("vlb"):  # types that need no other weight have no such bar
            known = [kind in OBJECTIVES for kind in PREDICTION_TYPES]
            values = [v if there else math.nan for v, there in zip(values, known, strict=True)]
        where = place + 0.27 * (number - 1)
        left.bar(where, values, 0.25, label=label, color=colour)
        for x, value in zip(where, values, strict=True):
            if math.isfinite(value):
                left.text(x, value * 1.03, f"{value:.3g}", ha="center", fontsize=7)
    left.set(yscale="log", ylim=(1, 5000), xticks=place, xticklabels=PREDICTION_TYPES)
    left.set(title="prediction types", ylabel="bound, nats")
    names = [name for name in OTHERS if math.isfinite(median(results, name))]
    for variance, colour in zip(VARIANCES, (BLUE, GREY), strict=True):
        right.plot(
            [median(results, name, variance) for name in names],
            np.arange(len(names)),
            "o",
            color=colour,
            label=variance,
        )
        right.axvline(floor[variance], color=colour, linestyle=":", linewidth=1)
    learned = median(results, "loss=hybrid", "learned_range")
    right.plot([learned], [names.index("loss=hybrid")], "D", color=RED, label="learned_range")
    right.axvline(entropy, color="black", linewidth=1)
    right.set(yticks=np.arange(len(names)), yticklabels=names, xlabel="bound, nats")
    right.set(title="v by other objectives")
    right.invert_yaxis()
    for axis in (left, right):
        axis.legend(fontsize=7)
        axis.tick_params(labelsize=8)
    left.axhline(entropy, color="black", linewidth=1)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/training"))
    parser.add_argument("--seeds", type=int, default=3, help="of the prediction types")
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    file = arguments.out / "objectives.json"
    results = json.loads(file.read_text())["runs"] if file.exists() else {}
    test = load_toy("moons", "test")
    entropy = -float(test.log_density(test.points[:POINTS]).mean())
    floor = optimum(test)
    first = {**DISTINCT, **UNWEIGHTED, **WEIGHTED, **OTHERS}
    rest = itertools.product((DISTINCT, UNWEIGHTED, WEIGHTED), range(1, arguments.seeds))
    for runs, seed in ((first, 0), *sorted(rest, key=lambda item: item[1])):
        for name, options in runs.items():
            key = f"{name} / {seed}"
            if key not in results:
                results[key] = bounds(options, arguments.steps, seed)
                print(key, results[key], flush=True)
                content = {"entropy": entropy, "optimum": floor, "runs": results}
                file.write_text(json.dumps(content, indent=1) + "\n")
    draw(results, floor, entropy, arguments.out / "figures" / "objectives.png")
    print("\n".join(rows(results)))


if __name__ == "__main__":
    main()
