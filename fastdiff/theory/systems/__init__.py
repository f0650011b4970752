"""Systems made of a network and a schedule: denoiser, super-resolution, noise-aware classifier.

The names of this package load on first use. `fastdiff.theory.registry` finds the systems by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import lazy

_WHERE = {
    "Denoiser": "denoiser",
    "NoisyClassifier": "classifier",
    "SuperResolution": "superres",
    "make": "presets",
}

__all__ = ["Denoiser", "NoisyClassifier", "SuperResolution", "make"]

if TYPE_CHECKING:
    from .classifier import NoisyClassifier
    from .denoiser import Denoiser
    from .presets import make
    from .superres import SuperResolution
else:
    __getattr__, __dir__ = lazy.on_first_use(__name__, _WHERE)
