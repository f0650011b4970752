"""Distances between a set of pictures and the data: Fréchet, kernel, precision and recall.

`fastdiff metrics A B` is the command. In Python, `summarize` turns batches of pictures into a
`Summary` with a feature extractor, and `compare` gives the numbers of two summaries.
"""

from __future__ import annotations

from .compare import Summary, compare, summarize
from .distances import (
    KernelDistance,
    Neighbours,
    frechet_distance,
    kernel_distance,
    neighbours,
)
from .extractors import Extractor, fashion, of_callable, raw, torchscript
from .moments import Moments, load_moments, save_moments

__all__ = [
    "Extractor",
    "KernelDistance",
    "Moments",
    "Neighbours",
    "Summary",
    "compare",
    "fashion",
    "frechet_distance",
    "kernel_distance",
    "load_moments",
    "neighbours",
    "of_callable",
    "raw",
    "save_moments",
    "summarize",
    "torchscript",
]
