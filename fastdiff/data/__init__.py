"""Data sets: images with labels, points of the plane with a density, and the user's own.

What they have in common is in `Data`; `batches` yields their examples in the order of a plan.
`load` finds a data set by the name or path that the command line uses, and `wrap` makes one of any
map-style data set of PyTorch.
"""

from __future__ import annotations

from .contract import Condition, Data
from .fashion_mnist import BUNDLED_TRAIN, DataSet, load_fashion_mnist
from .loading import batches
from .opening import IMAGES, NAMES, family, load, reopen
from .options import Options
from .pictures import Pictures
from .toys import TOYS, Toy, load_toy
from .wrapped import wrap

__all__ = [
    "BUNDLED_TRAIN",
    "IMAGES",
    "NAMES",
    "TOYS",
    "Condition",
    "Data",
    "DataSet",
    "Options",
    "Pictures",
    "Toy",
    "batches",
    "family",
    "load",
    "load_fashion_mnist",
    "load_toy",
    "reopen",
    "wrap",
]
