"""The table of trainable systems by name, used by training, evaluation and model folders.

Each entry is "module:class"; the module loads on first use. A `unet` is a `Denoiser`, with a U-Net
for images and a perceptron for points. What a system must provide is defined
in `fastdiff.theory.system`.
"""

from __future__ import annotations

import importlib
from typing import Any

SYSTEMS = {
    "autoregressive": "fastdiff.theory.autoregressive.model:Autoregressive",
    "classifier": "fastdiff.theory.systems.classifier:NoisyClassifier",
    "hvae": "fastdiff.theory.variational.hvae:HVAE",
    "markovian": "fastdiff.theory.variational.markovian:MarkovianHVAE",
    "score": "fastdiff.theory.score.model:ScoreModel",
    "superres": "fastdiff.theory.systems.superres:SuperResolution",
    "unet": "fastdiff.theory.systems.denoiser:Denoiser",
    "vae": "fastdiff.theory.variational.vae:VAE",
    "vdm": "fastdiff.theory.variational.vdm:VDM",
}


def find(name: str) -> type:
    """Returns the class of the system `name`. Raises ValueError for an unknown name."""
    if name not in SYSTEMS:
        raise ValueError(
            f"fastdiff.theory.registry: expected a system in {sorted(SYSTEMS)}, got {name!r}."
        )
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def name_of(system: Any) -> str:
    """Returns the registered name of an instance: the inverse of `find`.

    Raises TypeError for an instance of a class that is not in the registry.
    """
    path = f"{type(system).__module__}:{type(system).__qualname__}"
    for name, registered in SYSTEMS.items():
        if registered == path:
            return name
    raise TypeError(
        f"fastdiff.theory.registry: expected a system among {', '.join(sorted(SYSTEMS))}, got a"
        f" {type(system).__name__}. Save your own system with your own code."
    )
