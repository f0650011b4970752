"""The pictures of docs/choosing.md: error against calls, grids, samples of the shipped model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend first)
from matplotlib.colors import LogNorm  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullLocator  # noqa: E402

from benchmarks.choosing.ranking import Mixture  # noqa: E402

WIDTH, DPI = 8.4, 100  # inches, dots per inch: the width of a README
TITLES = {"betas": "betas (scaled_linear)", "edm": "EDM's levels", "flow": "flow, shift 3"}
LINES = {
    "ddim": ("#777777", "o"),
    "heun": ("#9467bd", "v"),
    "dpm++2m": ("#1f77b4", "s"),
    "unipc": ("#d9541e", "D"),
    "ipndm": ("#2ca02c", "^"),
    "dpm++2m_sde": ("#17becf", "P"),
    "er_sde": ("#c2185b", "*"),
}
HEATED = "ipndm"  # the solver whose grids are compared
HEATED_CALLS = (5, 10, 20, 50)
FITTED, FARTHEST = "ays_sdxl", 500.0  # the second grid, and a distance that leaves the picture


def curves(mixture: Mixture) -> Any:
    """Draws error over calls, one panel for each schedule, every solver on its best grid."""
    picture, panels = plt.subplots(
        1, len(TITLES), figsize=(WIDTH, 3.6), layout="constrained", sharey=True
    )
    for axes, (case, title) in zip(panels, TITLES.items(), strict=True):
        for solver, (colour, mark) in LINES.items():
            found = [(n, mixture.best_grid(case, solver, n)) for n in mixture.calls]
            points = [(n, best[0]) for n, best in found if best is not None]
            axes.plot(
                [n for n, _ in points],
                [v for _, v in points],
                marker=mark,
                ms=4.5,
                lw=1.3,
                color=colour,
                label=solver,
            )
        _calls_axis(axes, mixture.calls)
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.grid(which="major", alpha=0.3)
    panels[0].set_ylabel("error / deviation of the data", fontsize=9)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return picture


def grids(mixture: Mixture) -> Any:
    """Draws the errors of one solver on every grid, one panel for each schedule."""
    names = mixture.grids
    picture, panels = plt.subplots(
        1, len(TITLES), figsize=(WIDTH, 0.9 + 0.24 * len(names)), layout="constrained", sharey=True
    )
    shown: dict[str, np.ndarray] = {}
    for case in TITLES:
        values = [[mixture.error(case, HEATED, name, n) for n in HEATED_CALLS] for name in names]
        shown[case] = np.array(values, dtype=float)  # None becomes NaN
    for axes, (case, title) in zip(panels, TITLES.items(), strict=True):
        # each column against its own best, so that grids are compared for one number of calls
        ratio = shown[case] / np.nanmin(shown[case], axis=0)
        axes.imshow(ratio, norm=LogNorm(1.0, 20.0), cmap="YlOrRd", aspect="auto")
        for (i, j), value in np.ndenumerate(shown[case]):
            if np.isnan(value):
                axes.text(j, i, "-", ha="center", va="center", fontsize=7, color="#777777")
                continue
            dark = ratio[i, j] > 7
            axes.text(
                j,
                i,
                f"{value:.2g}" if value >= 0.001 else f"{value:.4f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
                fontweight="bold" if ratio[i, j] <= 1.1 else "normal",
            )
        axes.set_xticks(range(len(HEATED_CALLS)), [str(n) for n in HEATED_CALLS], fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlabel("network calls", fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.tick_params(length=0)
    return picture


def weights(cells: Sequence[Mapping[str, Any]], guidance: float) -> Any:
    """Draws Fréchet distance and diversity over calls, with the shipped weights, on two grids."""
    picture, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    found = [c for c in cells if c["guidance"] == guidance and c["frechet"] < FARTHEST]
    calls = sorted({c["calls"] for c in found})
    styles = {"trailing": "-", FITTED: ":"}
    for axes, name in zip(panels, ("frechet", "diversity"), strict=True):
        for grid, style in styles.items():
            for solver, (colour, mark) in LINES.items():
                points = sorted(
                    (c["calls"], c[name])
                    for c in found
                    if (c["solver"], c["grid"]) == (solver, grid)
                )
                if len(points) > 1:
                    x, y = zip(*points, strict=True)
                    label = solver if grid == "trailing" else None
                    axes.plot(x, y, style, marker=mark, ms=4.5, lw=1.4, color=colour, label=label)
        _calls_axis(axes, calls)
        axes.grid(which="major", alpha=0.3)
    for grid, style in styles.items():
        panels[1].plot([], [], style, color="black", lw=1.4, label=f"on {grid}")
    panels[0].set_yscale("log")
    ticks = (40, 50, 60, 80, 100, 150, 200)
    panels[0].set_yticks(ticks, [str(v) for v in ticks], fontsize=8)
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].set_title("Fréchet distance (low is good)", fontsize=10)
    panels[1].set_title("diversity within a class (1: as the data)", fontsize=10)
    panels[1].tick_params(axis="y", labelsize=8)
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return picture


def samples(drawn: Mapping[tuple[str, int], np.ndarray]) -> Any:
    """Draws samples: a line for each solver, a block for each number of calls.

    drawn: (its label, calls) -> uint8 [N, 1, 28, 28], the same noise and classes in each.
    """
    labels = list(dict.fromkeys(label for label, _ in drawn))
    calls = list(dict.fromkeys(n for _, n in drawn))
    picture, panels = plt.subplots(
        len(labels),
        len(calls),
        figsize=(WIDTH, 0.3 + 0.47 * len(labels)),
        layout="constrained",
        squeeze=False,
    )
    for i, label in enumerate(labels):
        for j, n in enumerate(calls):
            axes, x = panels[i][j], drawn[label, n]
            axes.imshow(np.concatenate(list(x[:, 0]), axis=1), cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title(f"{n} network calls", fontsize=9)
            if j == 0:
                axes.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    return picture


def save(picture: Any, path: Path, colours: int = 64, source: str | None = None) -> None:
    """Writes a figure as a PNG with a palette, and closes it.

    source: what it was drawn from, kept in the file under the key Source.
    """
    notes = PngInfo()
    if source is not None:
        notes.add_text("Source", source)
    content = io.BytesIO()
    picture.savefig(content, dpi=DPI, metadata={"Software": None})
    plt.close(picture)
    content.seek(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(content) as drawn:
        reduced = drawn.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        reduced.save(path, optimize=True, pnginfo=notes)


def _calls_axis(axes: Any, calls: Sequence[int]) -> None:
    shown = [n for n in calls if n in ((4, 6, 10, 20, 50) if 4 in calls else (5, 10, 20, 50))]
    axes.set_xscale("log")
    axes.set_xticks(shown, [str(n) for n in shown], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("network calls", fontsize=9)
