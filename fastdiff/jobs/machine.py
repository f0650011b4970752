"""The properties of a machine that the last bits of a network's output depend on.

They are recorded when a run is planned, and compared on every machine that resumes it. fastdiff's
own kernels give the same bits everywhere. A network's matrix products do not: their order of
summation depends on the instruction set that torch, oneDNN and MKL choose, on the processor's or
GPU's model, on the number of threads and on the versions of the libraries.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..backend.choice import backend_for
from ..versions import __version__

# environment variables that select the instructions that networks run on
SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)


def describe(device: torch.device) -> dict[str, Any]:
    """Returns what must be equal on every machine that works on a run, JSON-safe."""
    found: dict[str, Any] = {
        "fastdiff": __version__,
        "torch": str(torch.__version__),
        "backend": backend_for("reverse_step", device),
        "device": device.type,
        "name": _name(device),
    }
    if device.type == "cpu":
        found["capability"] = torch.backends.cpu.get_cpu_capability()
        found["settings"] = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    if device.type == "cuda":
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return found


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in reversed(lines))
    }
    # the model name of virtual machines often lacks the model number
    parts = [fields.get("model name") or platform.machine()]
    if "cpu family" in fields:
        parts.append(f"family {fields['cpu family']} model {fields.get('model', '?')}")
    return ", ".join(parts)


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Makes torch compute with this number of threads and with cuDNN's deterministic algorithms."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    try:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]
