"""Systems made of a network and a schedule: denoiser, super-resolution, noise-aware classifier.

The names of this package load on first use. `fastdiff.theory.registry` finds the systems by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

    def __getattr__(name: str) -> Any:
        if name in _WHERE:
            value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
