"""What the figures of all commands share: a matplotlib canvas without a window, and atomic files.

plan_figure.py     `fastdiff plan --plot`: a plan's levels and coefficients
bound_figure.py    `fastdiff eval --plot`: a bound's terms over time
system_figure.py   `fastdiff train --plot`: what a trained system draws
"""

from __future__ import annotations

import os
import tempfile
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


def check_target(path: str | PathLike[str], *, drawn: bool = True) -> None:
    """Raises what writing the figure would raise, before the work that it shows.

    drawn: whether matplotlib draws it.

    Raises:
        ValueError: another suffix than .png.
        FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError: a folder that no
            file can be written to.
        RuntimeError: without matplotlib.
    """
    file = Path(path)
    if file.suffix.lower() != ".png":
        raise ValueError(f"expected --plot FILE.png, got {file}. The figure is written as PNG.")
    if file.is_dir():
        raise IsADirectoryError(f"expected a file for --plot, got the folder {file}.")
    if not file.parent.exists():
        raise FileNotFoundError(
            f"expected a folder that exists for --plot, got {file.parent}. Create it first."
        )
    if not file.parent.is_dir():
        raise NotADirectoryError(f"expected a folder for --plot, got the file {file.parent}.")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise PermissionError(
            f"expected a folder to write to for --plot, got {file.parent}"
            f" ({os.strerror(error.errno or 0)}). Choose another one."
        ) from error
    if drawn:
        new(1, 1)


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
