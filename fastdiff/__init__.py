"""fastdiff: a diffusion sampling engine over hand-written kernels.

Public names load on first use; importing this package touches no GPU, no network and no thread.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Plan": "solvers",
    "Request": "loop.batch",
    "Sampler": "sampler",
    "Schedule": "schedule",
    "Trainer": "trainer",
    "backends": "backend",
    "discretized_gaussian_nll": "ops",
    "gaussian_kl": "ops",
    "noise_mse": "ops",
    "q_posterior": "ops",
    "q_sample": "ops",
    "randn": "ops",
    "reparameterize": "ops",
    "reverse_step": "ops",
    "to_uint8": "images",
    "use": "backend",
    "vlb_terms": "ops",
}
__all__ = [
    "Plan",
    "Request",
    "Sampler",
    "Schedule",
    "Trainer",
    "__version__",
    "backends",
    "discretized_gaussian_nll",
    "gaussian_kl",
    "noise_mse",
    "q_posterior",
    "q_sample",
    "randn",
    "reparameterize",
    "reverse_step",
    "to_uint8",
    "use",
    "vlb_terms",
]

if TYPE_CHECKING:
    from .backend import backends, use
    from .images import to_uint8
    from .ops import (  # type: ignore[no-redef]  # files of ops have their op's name
        discretized_gaussian_nll,
        gaussian_kl,
        noise_mse,
        q_posterior,
        q_sample,
        randn,
        reparameterize,
        reverse_step,
        vlb_terms,
    )
    from .loop.batch import Request
    from .sampler import Sampler
    from .schedule import Schedule
    from .solvers import Plan
    from .trainer import Trainer


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
