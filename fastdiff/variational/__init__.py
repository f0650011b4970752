"""Latent-variable models and their bounds: p(x) = ∫ p(x|z) p(z) dz, ELBO <= IWAE_K <= log p(x).

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name -> the module of this package that defines it
_WHERE = {
    "ProbabilisticPCA": "ppca",
    "VAE": "vae",
    "effective_sample_size": "bounds",
    "elbo": "bounds",
    "gradient_moments": "objectives",
    "iwae": "bounds",
    "iwae_stderr": "bounds",
    "log_weights": "bounds",
    "objective": "objectives",
}

__all__ = [
    "ProbabilisticPCA",
    "VAE",
    "effective_sample_size",
    "elbo",
    "gradient_moments",
    "iwae",
    "iwae_stderr",
    "log_weights",
    "objective",
]

if TYPE_CHECKING:
    from .bounds import effective_sample_size, elbo, iwae, iwae_stderr, log_weights
    from .objectives import gradient_moments, objective
    from .ppca import ProbabilisticPCA
    from .vae import VAE


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
