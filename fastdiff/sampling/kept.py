"""What a sampler keeps from run to run: plans on the device, buffers and CUDA graphs.

A captured step is worth most when the next run replays it from its first step. So the buffers of a
run with graphs go back to the sampler when it ends, and the next run of the same kind takes them.
While a run has them no other has, so threads may share a sampler.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Hashable
from typing import Any

from .buffers import Lanes
from .device_plan import DevicePlan
from .options import RunOptions

MOST = 4
"""Runs of different kinds that are kept; the one that ended first is dropped for a new one."""


@dataclasses.dataclass
class Run:
    """The plans on the device and the buffers of a run.

    Attributes:
        kind: what runs that may follow have in common; None for a run that is not kept.
        device_plan: to which a run adds its samples' plans.
        lanes: of the run before, None for the first.
    """

    kind: Hashable
    device_plan: DevicePlan
    lanes: Lanes | None = None


class KeptRuns:
    """Ended runs, which later ones continue. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: list[Run] = []

    def take(self, kind: Hashable) -> Run | None:
        """Returns the latest run of this kind, which then belongs to the caller; None without."""
        with self._lock:
            for i in reversed(range(len(self._runs))):
                if self._runs[i].kind == kind:
                    return self._runs.pop(i)
        return None

    def put(self, run: Run) -> None:
        """Keeps a run that has ended, unless its plans have grown too long."""
        if run.kind is None or run.device_plan.long:
            return
        with self._lock:
            self._runs.append(run)
            del self._runs[:-MOST]

    def __reduce__(self) -> Any:
        return KeptRuns, ()


def kind_of(options: RunOptions, network: Hashable) -> Hashable:
    """Returns what decides whether a run can use the plans and buffers of another.

    network: the `fingerprint` of the network.
    """
    o = options
    shapes = (
        o.device,
        o.dtype,
        o.shape,
        o.inpaints,
        o.wants_x0,
        o.network_batch,
        o.on_oom,
        o.window,
    )
    return shapes, network
