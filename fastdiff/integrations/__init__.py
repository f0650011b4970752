"""Interfaces of other libraries over fastdiff's formulas and kernels.

Its modules load on first use; `edm`, which makes samplers, has an import statement of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

_MODULES = ("diffusers", "k_diffusion", "networks")

if TYPE_CHECKING:
    from . import diffusers as diffusers
    from . import k_diffusion as k_diffusion
    from . import networks as networks
else:
    __getattr__, __dir__ = lazy.on_first_use(__name__, {}, _MODULES)
