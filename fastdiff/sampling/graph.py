"""CUDA graphs: one step of each kind (both guidance halves, one of them, none) is captured once and
replayed.

Steps work on static buffers, so a captured step is right for every later one. The steps before a
capture warm up on a side stream, as CUDA requires: libraries allocate their workspaces and kernels
are compiled there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable

import torch

WARM_UP = 2
Step = Callable[[], None]


class Graphs:
    """Runs steps, from the third step of a kind on as graphs.

    Args:
        required: whether a capture that fails raises; otherwise it warns once and steps run
            without graphs.
        warm: runs a step on the side stream.
        capture: captures a step and returns its replay.
    """

    def __init__(
        self, *, required: bool, warm: Callable[[Step], None], capture: Callable[[Step], Step]
    ):
        self._required, self._warm, self._capture = required, warm, capture
        self._off = False
        self._count: dict[Hashable, int] = {}
        self._replays: dict[Hashable, Step] = {}

    def run(self, kind: Hashable, step: Step) -> None:
        """Runs one step. Steps of one kind do the same to the same buffers."""
        if kind in self._replays:
            return self._replays[kind]()
        if self._off:
            return step()
        self._count[kind] = self._count.get(kind, 0) + 1
        if self._count[kind] <= WARM_UP:
            return self._warm(step)
        try:
            replay = self._capture(step)
        except RuntimeError as error:
            if self._required:
                raise RuntimeError(
                    f"fastdiff.Sampler: expected a step that CUDA can capture, got: {error}. Pass"
                    " graph=False."
                ) from error
            self._off = True
            warnings.warn(
                f"fastdiff.Sampler: no CUDA graph, capturing a step failed: {error}", stacklevel=2
            )
            return step()
        self._replays[kind] = replay
        return replay()


def graphs(option: bool | str, device: torch.device) -> Graphs | None:
    """The graphs of a run, or None where they are off; `auto` means on for CUDA."""
    if option == "auto" and device.type != "cuda" or option is False:
        return None
    if device.type != "cuda":
        raise ValueError(
            f"fastdiff.Sampler: expected a CUDA device for graph=True, got {device}. Pass"
            " graph='auto'."
        )
    side = torch.cuda.Stream(device)

    def warm(step: Step) -> None:
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream(device).wait_stream(side)

    def capture(step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may allocate meanwhile
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
        return graph.replay

    return Graphs(required=option is True, warm=warm, capture=capture)
