"""The figure of a bound's terms over time: bits per dimension at each noise level."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .figures import new, save, style

COLOURS = ("#1b6ca8", "#d1495b", "#2a9d8f", "#edae49", "#6b4c9a", "#8d6e63")


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Writes a PNG of the results whose bound is a sum over times.

    Raises ValueError when there are none.
    """
    shown = [r for r in results if "over_time" in r]
    if not shown:
        raise ValueError(
            "expected a model whose bound is a sum over times, got none. Leave out --plot."
        )
    classifiers = "right" in shown[0]["over_time"]
    figure = new(7.6 if classifiers else 12.6, 4.4)
    axes = [figure.subplots()] if classifiers else list(figure.subplots(1, 2))
    for result, colour in zip(shown, COLOURS * len(shown), strict=False):
        over = result["over_time"]
        log_snr = np.array(over["log_snr"])
        name = f"{result['model']}{', pixels permuted' if result['permuted'] else ''}"
        if classifiers:
            axes[0].plot(log_snr, over["right"], color=colour, label=name)
            continue
        bits = np.array(over["nats"]) / (result["dims"] * math.log(2))
        error = np.array(over["stderr"]) / (result["dims"] * math.log(2))
        # each term is an integral over an interval of log-SNR; divided by the interval's width it
        # does not depend on the number of times
        width = np.abs(np.gradient(log_snr)) if len(log_snr) > 1 else np.ones(1)
        axes[0].plot(log_snr, bits / width, color=colour, label=name)
        axes[0].fill_between(
            log_snr,
            (bits - error) / width,
            (bits + error) / width,
            color=colour,
            alpha=0.25,
            linewidth=0,
        )
        axes[1].plot(
            log_snr,
            np.cumsum(bits),
            color=colour,
            label=f"{name}: {result['bound']['bits_per_dim']:.3f} in all",
        )
    titles = (
        ["accuracy at each noise level"]
        if classifiers
        else [
            "denoising term: bits/dim per unit of log-SNR (± standard error)",
            "its sum from the data's end",
        ]
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10, loc="left")
        style(axis, "log-SNR, from the data (left) to noise", size=9)
        axis.invert_xaxis()
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
    save(figure, path)
