"""k_diffusion.sampling alone: the package imports training code, and what of torchvision it names is not used here."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


def load() -> Any:
    """The module k_diffusion.sampling, or a skip where it is not installed."""
    for name in ("k_diffusion", "torchsde", "torchdiffeq", "scipy"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed here (make test installs it)", allow_module_level=True)
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None
        package = ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["k_diffusion"] = package
    if importlib.util.find_spec("torchvision") is None:
        vision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
        vision.transforms = transforms  # type: ignore[attr-defined]
        transforms.functional = ModuleType("torchvision.transforms.functional")  # type: ignore[attr-defined]
        for module in (vision, transforms, transforms.functional):  # type: ignore[attr-defined]
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        stand_ins = {m.__name__: m for m in (vision, transforms, transforms.functional)}  # type: ignore[attr-defined]
        sys.modules.update(stand_ins)
        try:
            return importlib.import_module("k_diffusion.sampling")
        finally:
            for name in stand_ins:
                del sys.modules[name]
    return importlib.import_module("k_diffusion.sampling")
