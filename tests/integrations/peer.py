"""The module k_diffusion.sampling, and the inputs of both sides.

The rest of the package is not imported: it is training code, and it needs torchvision.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch


def load() -> Any:
    """The module k_diffusion.sampling, or a skip where it is not installed."""
    for name in ("k_diffusion", "torchsde", "torchdiffeq", "scipy"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(
                f"{name} is not installed here (make test installs it)", allow_module_level=True
            )
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None
        package = ModuleType("k_diffusion")
        package.__path__, package.__spec__ = list(spec.submodule_search_locations or []), spec
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


SHAPE = (2, 3, 4, 4)


def network(x: torch.Tensor, sigma: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    """Not linear in x, and of sigma."""
    s = sigma.view(-1, 1, 1, 1)
    return torch.tanh(0.7 * x / (1 + s) + 0.1 + shift) + 0.2 * torch.log1p(s)


class Noise:
    """A noise_sampler whose draws are a function of the noise levels asked for."""

    def __init__(self, like: torch.Tensor):
        self.like, self.asked = like, []  # type: ignore[var-annotated]

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        a, b = float(sigma), float(sigma_next)
        self.asked.append((round(a, 9), round(b, 9)))
        wave = torch.arange(self.like.numel(), dtype=torch.float64).reshape(self.like.shape)
        return torch.sin(wave * 1.7 + 3.0 * a + 5.0 * b).to(self.like.dtype)


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert expected.isfinite().all()
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    assert error <= tolerance, error


class Doubled:
    """k-diffusion's `torch` whose tensors of Python numbers are float64."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, value: Any) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    def linspace(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return torch.linspace(*arguments, **options, dtype=torch.float64)
