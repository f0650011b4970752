"""Writes the README's section about the shipped weights, and its picture of the loss.

The quality comes from benchmarks/results/quality.json, the training from the weights' folder. `make
report` calls this. `python -m benchmarks.quality` writes the picture of samples.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks.tables import between, table
from fastdiff import images
from fastdiff.pretrained import locate, read_config

MODEL = "fashion-mnist"
ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "weights"
README, RESULT = ROOT / "README.md", ROOT / "benchmarks" / "results" / "quality.json"
BEGIN, END = "<!-- shipped-weights:begin -->", "<!-- shipped-weights:end -->"
COLUMNS = 16  # samples of a class in the picture
WINDOW = 25  # rows of the loss that are averaged
WHAT = {
    "agreement": "a classifier agrees with the requested class",
    "diversity": "mean distance of two samples of a class, over that of two test images",
    "frechet": "Fréchet distance of its features to the training set's, over the test images'",
    "copies": "nearer to a training image than 0.3 times the median test image",
}
# (factor, digits of the measured number, unit)
SHOWN = {
    "agreement": (100, 1, " %"),
    "diversity": (1, 2, ""),
    "frechet": (1, 1, "×"),
    "copies": (100, 2, " %"),
}
SIGNS = {">=": "≥", "<=": "≤", "<": "<"}


def section(report: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """Returns the section's text, of the record of the quality and of the training."""
    rows = []
    for name, what in WHAT.items():
        sign, goal = report["goals"][name].split()
        factor, digits, unit = SHOWN[name]
        missed = "missed: " if name in report["missed"] else ""
        rows.append(
            [
                what,
                f"{factor * report[name]:.{digits}f}{unit}",
                f"{missed}{SIGNS[sign]} {factor * float(goal):g}{unit}",
            ]
        )
    judges = report["classifiers"]
    right = " and ".join(f"{100 * each['accuracy']:.1f}" for each in judges)
    sampler, runs = report["sampler"], training["runs"]
    rest = ", ".join(f"`{k}={v}`" for k, v in sampler.items() if k not in ("solver", "steps"))
    passes = sum(run["steps"] for run in runs) * training["batch_size"] / 60_000
    return "\n\n".join(
        [
            "![Samples of the ten classes, a row of each](docs/weights/samples.png)",
            f"It was trained for {passes:.1f} passes over the images, in the"
            f" {len(runs)} runs of these commands; the last took {runs[-1]['minutes']} minutes of"
            " one CPU core.",
            "```\n" + "\n".join(run["command"] for run in runs) + "\n```",
            "![The loss: steep for a thousand steps, then slow](docs/weights/loss.png)",
            f"{report['samples']:,} samples with the model's own settings (`{sampler['solver']}`,"
            f" {sampler['steps']} steps, {rest}), judged by {len(judges)} classifiers that are"
            f" right on {right} % of the test images; medians. Another classifier chose the"
            " guidance, on the first 1,000 of them:",
            table(["", "measured", "goal"], rows),
            "`sh scripts/run -m benchmarks.quality --cache out/quality` measures them again, and"
            " `make report` writes this section from `benchmarks/results/quality.json`.",
        ]
    )


def sheet(x: Tensor, y: Tensor) -> Image.Image:
    """Returns the picture of the first samples [N, 1, 28, 28] uint8 of each class y [N]."""
    names = read_config(MODEL)["data"]["classes"]
    n = COLUMNS * len(names)
    pictures = x[:n].movedim(1, -1).numpy()
    return images.grid(pictures, y[:n].numpy(), names, columns=COLUMNS).convert("L")


def write_sheet(x: Tensor, y: Tensor) -> Path:
    """Writes the picture of samples; returns its path."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / "samples.png"
    sheet(x, y).save(path, optimize=True)
    return path


def losses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, losses) of a loss.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    steps, values = zip(*rows, strict=True)
    return np.array(steps), np.array(values)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_losses(path: Path, begins: Sequence[int]) -> Path:
    """Draws the loss of a loss.csv, with a line where a run began; returns the picture's path."""
    from benchmarks.choosing.plots import plt, save  # imports matplotlib, which the text needs not

    steps, values = losses(path)
    mean = np.convolve(values, np.ones(WINDOW) / WINDOW, mode="valid")
    picture, axes = plt.subplots(figsize=(8.4, 2.8), layout="constrained")
    axes.plot(steps, values, color="#bbbbbb", linewidth=0.8, label="mean since the last row")
    label = f"mean of {WINDOW} rows"
    axes.plot(steps[WINDOW - 1 :], mean, color="#1f77b4", linewidth=1.6, label=label)
    for begin in begins:
        axes.axvline(begin, color="#d9541e", linewidth=0.8, linestyle="--", label="a new run")
    axes.set(xlabel="optimiser steps of 64 images", ylabel="loss (MSE of v)")
    axes.set_ylim(0.12, 0.24)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    save(picture, FIGURES / "loss.png", source=digest(path))
    return FIGURES / "loss.png"


def write(readme: Path = README) -> list[Path]:
    """Writes the section and the picture of the loss; returns the written files."""
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    training = read_config(MODEL)["training"]
    text = between(
        readme.read_text(encoding="utf-8"), BEGIN, END, section(report, training), readme
    )
    readme.write_text(text, encoding="utf-8")
    begins = list(itertools.accumulate(run["steps"] for run in training["runs"]))[:-1]
    return [readme, write_losses(locate(MODEL) / "loss.csv", begins)]
