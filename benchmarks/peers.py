"""The peers: torch eager, torch.compile in its modes, diffusers, k-diffusion and NumPy.

A peer that is not installed is a `Missing` with the reason, and is reported as missing.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

MODES = ("default", "reduce-overhead", "max-autotune")
NAMES = ("torch", "diffusers", "k-diffusion", "numpy")


class Missing(NamedTuple):
    """The reason why a peer is missing in a row."""

    reason: str


class Compiled(NamedTuple):
    """An arm compiled by torch.compile, and the seconds that its first call took."""

    call: Callable[[], Any]
    seconds: float

    def __call__(self) -> Any:
        return self.call()


def diffusers() -> Any:
    """Returns the module, or `Missing`."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        return Missing(_why("diffusers", error))


@functools.cache
def k_diffusion() -> Any:
    """Returns the module k_diffusion.sampling, or `Missing`.

    The package's `__init__` imports training code and is therefore not run.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        return Missing("not installed")
    added: list[str] = []

    def stand_in(name: str) -> ModuleType:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        added.append(name)
        return module

    package = None
    if "k_diffusion" not in sys.modules:
        package = stand_in("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or [])
    # the samplers import torchvision but do not use it
    if importlib.util.find_spec("torchvision") is None:
        vision, transforms = stand_in("torchvision"), stand_in("torchvision.transforms")
        vision.transforms = transforms  # type: ignore[attr-defined]
        transforms.functional = stand_in("torchvision.transforms.functional")  # type: ignore[attr-defined]
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError as error:
        return Missing(_why("k_diffusion", error))
    finally:
        for name in added:
            del sys.modules[name]


def _why(name: str, error: ImportError) -> str:
    missing = (getattr(error, "name", None) or name).split(".")[0]
    return "not installed" if missing == name else f"needs {missing}, which is not installed"


def versions() -> tuple[dict[str, str], list[str]]:
    """Returns ({peer: version} of the usable ones, a sentence for each other)."""
    found, missing = {}, []
    usable = {"diffusers": diffusers, "k-diffusion": k_diffusion}
    for name in NAMES:
        peer = usable[name]() if name in usable else None
        if isinstance(peer, Missing):
            missing.append(f"{name}: {peer.reason}")
        else:
            found[name] = importlib.metadata.version(name)
    reason = compiler()
    if reason:
        missing.append(f"torch.compile: {reason}")
    return found, missing


@functools.cache
def compiler() -> str:
    """Returns why torch.compile has no compiler; empty where it has one.

    Later failures are reported by the mode that fails.
    """
    if torch.cuda.is_available():
        return "" if importlib.util.find_spec("triton") else "needs triton, which is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # of a type that moves between versions of Inductor
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def compiled(
    fn: Callable[..., Any], *inputs: Any, modes: tuple[str, ...] = MODES
) -> dict[str, Any] | Missing:
    """Returns {mode: arm} of torch.compile, compiled anew for these inputs; or `Missing`.

    No graph or file of an earlier compilation is used. The compiler writes to a folder of this
    process; later modes reuse what they share with the first in memory. A mode that fails is a
    `Missing` among the others.
    """
    if compiler():
        return Missing(compiler())
    from torch._inductor import config

    torch._dynamo.reset()
    arms: dict[str, Any] = {}
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _folder()
    with config.patch(force_disable_caches=True):
        for mode in modes:
            try:
                call = torch.compile(fn, mode=mode, dynamic=False)
                begin = time.perf_counter()
                call(*inputs)
                _synchronize(inputs)
                arms[mode] = Compiled(functools.partial(call, *inputs), time.perf_counter() - begin)
            except Exception as error:
                arms[mode] = Missing(
                    f"{type(error).__name__}:"
                    f" {(str(error).strip() or 'no message').splitlines()[0]}"
                )
    return arms


@functools.cache
def _folder() -> str:
    """Returns the folder for torch.compile's files, which is removed when the process ends."""
    path = tempfile.mkdtemp(prefix="fastdiff-compiled-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _synchronize(inputs: tuple[Any, ...]) -> None:
    if any(isinstance(v, torch.Tensor) and v.is_cuda for v in inputs):
        torch.cuda.synchronize()
