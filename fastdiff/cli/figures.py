"""What the figures of all commands share: a matplotlib canvas without a window, and atomic files.

plan_figure.py     `fastdiff plan --plot`: a plan's levels and coefficients
bound_figure.py    `fastdiff eval --plot`: a bound's terms over time
system_figure.py   `fastdiff train --plot`: what a trained system draws
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ..pretrained.files import write_atomically


def new(width: float, height: float) -> Any:
    """Returns an empty figure of this size in inches. Raises RuntimeError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(
            "expected matplotlib for a plot, got none installed. Install matplotlib (the extra"
            " `plot`)."
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | PathLike[str]) -> None:
    """Writes the figure as PNG, atomically."""
    write_atomically(Path(path), lambda p: figure.savefig(p, format="png", dpi=110))


def style(axis: Any, xlabel: str, size: int = 8) -> None:
    """Gives an axis the common look: a light grid behind the data, no frame on two sides."""
    axis.set_xlabel(xlabel, fontsize=size)
    axis.grid(color="#eeeeee", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
