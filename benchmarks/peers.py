"""What fastdiff is compared with: torch eager, torch.compile in its modes, diffusers, k-diffusion
and NumPy.

A peer that is not here is a `Missing` with the reason, and is reported as such.
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
    """A peer that should be in a row and is not."""

    reason: str


class Compiled(NamedTuple):
    """An arm that torch.compile made, and the seconds that its first call took."""

    call: Callable[[], Any]
    seconds: float

    def __call__(self) -> Any:
        return self.call()


def diffusers() -> Any:
    """The module, or `Missing`."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        return Missing(_why("diffusers", error))


@functools.cache
def k_diffusion() -> Any:
    """The module k_diffusion.sampling, or `Missing`. The package's own start imports training code,
    so it is passed by.
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
    if (
        importlib.util.find_spec("torchvision") is None
    ):  # its samplers do not use what they import of it
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
    """(versions of the peers that can be used, one sentence for each that can't)."""
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
    """Why torch.compile has nothing to compile with; empty where it has. What fails later is said
    by the mode that fails.
    """
    if torch.cuda.is_available():
        return "" if importlib.util.find_spec("triton") else "needs triton, which is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # Inductor's own type, whose place moves between versions
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def compiled(
    fn: Callable[..., Any], *inputs: Any, modes: tuple[str, ...] = MODES
) -> dict[str, Any] | Missing:
    """An arm for each mode of torch.compile, made for these inputs afresh: no graph and no file of
    an earlier one is used.

    Files lie in a folder of this process, where no other's compiler writes; modes that come later
    find loaded what they share with the first. Under no_grad where no input requires a gradient, as
    one samples. A mode that fails is a `Missing` among the others.
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
    """Where torch.compile writes; it goes when the process ends."""
    path = tempfile.mkdtemp(prefix="fastdiff-compiled-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _synchronize(inputs: tuple[Any, ...]) -> None:
    if any(isinstance(v, torch.Tensor) and v.is_cuda for v in inputs):
        torch.cuda.synchronize()
