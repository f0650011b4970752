"""matplotlib where it is installed: figures without a window, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..pretrained.files import write_atomically


def new(width: float, height: float) -> Any:
    """An empty figure. Raises RuntimeError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(
            "fastdiff.plot: expected matplotlib for a plot, got none installed. Install matplotlib"
            " (the extra `plot`)."
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=110))
