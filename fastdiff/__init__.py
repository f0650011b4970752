"""fastdiff: a diffusion sampling engine over hand-written kernels.

Public names load on first use; importing this package touches no GPU, no network and no thread.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Plan": "solvers",
    "Sampler": "sampler",
    "Schedule": "schedule",
    "Trainer": "trainer",
    "backends": "backend",
    "q_sample": "ops",
    "randn": "ops",
    "reverse_step": "ops",
    "to_uint8": "images",
    "use": "backend",
}
__all__ = [
    "Plan",
    "Sampler",
    "Schedule",
    "Trainer",
    "__version__",
    "backends",
    "q_sample",
    "randn",
    "reverse_step",
    "to_uint8",
    "use",
]

if TYPE_CHECKING:
    from .backend import backends, use
    from .images import to_uint8
    from .ops import q_sample, randn, reverse_step  # type: ignore[no-redef]  # files of ops have their op's name
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
