"""What the pieces share: the device, its sizes, and rows without a peer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

import fastdiff
from benchmarks import harness
from benchmarks.checks import relative_difference
from benchmarks.gpu.predictions import LARGE
from benchmarks.peers import MODES, Missing, compiled
from fastdiff.cli.timing import spread
from fastdiff.jobs import machine

Row = dict[str, Any]
# (the row's name, unique in its piece; the function that measures it)
Rows = Iterator[tuple[str, Callable[[], Row]]]


class Target(NamedTuple):
    """The device that is measured.

    device: cuda; or cpu for a dry run, which has tiny sizes and compiles only one network.
    brief: whether rows take a third of a second and nothing is compiled by torch.compile.
    """

    device: str
    brief: bool = False

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    @property
    def setting(self) -> harness.Setting:
        return (
            harness.Setting(self.device, 0.02, 2, "quick")
            if self.dry
            else harness.Setting(self.device, 0.3, 5, "quick")
            if self.brief
            else harness.Setting(self.device, 1.0, 5, "full")
        )

    def size(self, real: Any, tiny: Any) -> Any:
        return tiny if self.dry else real

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name; the large one is many times larger than a cache of 60 MB."""
        if self.dry:
            return {"real": (4, 3, 8, 8), LARGE: (8, 3, 16, 16)}
        return {"real": (256, 3, 32, 32), LARGE: (1024, 3, 128, 128)}

    @property
    def backends(self) -> tuple[str, ...]:
        return ("cpu",) if self.dry else ("triton", "cuda")

    def compiled(self, fn: Callable[..., Any], *inputs: Any, modes: tuple[str, ...] = MODES) -> Any:
        if self.dry:
            return Missing("not compiled in a dry run")
        if self.brief:
            return Missing("not compiled in the piece `first`")
        return compiled(fn, *inputs, modes=modes)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs ops on this backend within the block. Raises RuntimeError where it is not available."""
    state = fastdiff.backends()[name]
    if not state.available:
        raise RuntimeError(f"the backend {name} is off: {state.reason}")
    with fastdiff.use(name):
        yield


def replayed(target: Target, call: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a call that replays a CUDA graph of `call`; in a dry run `call` itself.

    A replay has the kernels' time without that of their launches.
    """
    if target.dry:
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles kernels and allocates workspaces
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def alone(
    target: Target,
    call: Callable[[], Any],
    *,
    kind: str,
    what: str,
    case: Row,
    checked: str,
    nbytes: int | None = None,
    flops: float | None = None,
    elements: int | None = None,
    per: str = "call",
    divide: float = 1.0,
) -> Row:
    """Measures a call without peers whose result has been checked. flops: of one call."""
    host: dict[str, list[float]] = {}
    times = harness.take_turns({"fastdiff": call}, target.setting, host=host)["fastdiff"]
    middle = statistics.median(times)
    rate = None if nbytes is None else round(nbytes / middle / 1e9, 3)
    return {
        "schema": harness.SCHEMA,
        "kind": kind,
        "what": what,
        "case": case,
        "device": device_name(target.device),
        "backend": None,
        "threads": torch.get_num_threads(),
        "cache": "warm",
        "per": per,
        "us": [round(1e6 * v / divide, 3) for v in spread(times)],
        "host_us": None
        if target.dry
        else [round(1e6 * v / divide, 3) for v in spread(host["fastdiff"])],
        "elements": elements,
        "bytes_floor": nbytes,
        "GB_per_s": rate,
        "copy_GB_per_s": None,
        "percent_of_copy": None,
        "instructions": None,
        "peers": {},
        "best_peer": None,
        "compile_s": None,
        "extra_bytes": None,
        "checked": checked,
        "TFLOP_per_s": None if flops is None else round(flops / middle / 1e12, 3),
    }


def device_name(device: str) -> str:
    return "cpu" if device == "cpu" else str(machine.describe(torch.device(device))["name"])


def within(got: torch.Tensor, expected: torch.Tensor, limit: float, what: str) -> str:
    """Returns the error and its limit in words. Raises AssertionError above it, and for NaN."""
    error = relative_difference(got, expected)
    if not error <= limit:
        raise AssertionError(f"{what}: expected within {limit:g} of the reference, got {error:.2g}")
    return f"{error:.1e} of {limit:g} allowed"


__all__ = [
    "MODES",
    "Missing",
    "Row",
    "Rows",
    "Target",
    "alone",
    "backend",
    "device_name",
    "replayed",
    "within",
]
