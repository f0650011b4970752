"""Interfaces of other libraries over fastdiff's formulas and kernels.

Its modules load on first use; `edm`, which makes samplers, has an import statement of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_MODULES = ("diffusers", "k_diffusion", "networks")

if TYPE_CHECKING:
    from . import diffusers as diffusers
    from . import k_diffusion as k_diffusion
    from . import networks as networks
else:

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
