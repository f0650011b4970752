"""What this processor offers: the number of threads, and the dtype of networks.

bf16 is faster only where the processor multiplies bf16 tiles (AMX). Without AMX, bf16 convolutions
are several times slower than fp32, so fp32 is chosen.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..outside import shown


def named_device(name: str | torch.device, where: str) -> torch.device:
    """Returns torch's device of this name, which need not exist here.

    where: what error messages begin with. Raises ValueError for a name that torch does not know.
    """
    try:
        return torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{where}: expected a device such as cpu or cuda:0, got {shown(str(name))!r}."
        ) from None


def has_amx() -> bool:
    """Returns whether oneDNN uses AMX's bf16 tiles here.

    The processor must have them and ONEDNN_MAX_CPU_ISA allow them.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if limit not in ("ALL", "DEFAULT") and "AMX" not in limit:
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return "amx_bf16" in flags and "amx_tile" in flags


def network_dtype(name: str = "auto") -> torch.dtype:
    """Returns the dtype of `fp32`, `bf16` or `auto`, which is bf16 with AMX and fp32 without."""
    if name == "auto":
        name = "bf16" if has_amx() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def usable_cpus() -> int:
    """Returns the number of CPUs this process may run on.

    A container or taskset may allow fewer than the machine has.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
