"""CUDA graphs: steps are captured once and replayed.

Steps work on static buffers, so a captured step is right for every later one. The steps before a
capture warm up on a side stream, as CUDA requires: libraries allocate their workspaces and kernels
are compiled there. The last of them is watched: a step that reads the device from the host can't be
captured, and a capture that fails would cost more than it saves.

`Graphs` decides when a step is captured; `CudaDevice` is what it needs of CUDA. There is one
`CudaDevice` for each GPU, with one side stream and one memory pool for all graphs.
"""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

WARM_UP = 2
"""Steps of a kind before it is captured."""
CHUNK = 8
"""Steps of one kind that become one graph where nothing happens between them; an even number."""

Step = Callable[[], None]

_LOCK = threading.RLock()  # one capture at a time in a process, as torch requires
_SYNCHRONIZING = "called a synchronizing CUDA operation"
_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


class GraphDevice(Protocol):
    """What `Graphs` needs of a device."""

    def warm(self, step: Step) -> None:
        """Executes a step on the side stream."""

    def watch(self, step: Step) -> list[str]:
        """Executes a step on the side stream and returns the lines of code that read the device."""

    def capture(self, step: Step) -> Step:
        """Captures a step, without executing it, and returns its replay.

        Raises RuntimeError for a step that CUDA can't capture.
        """


class Graphs:
    """Executes steps, after the warm-up of their kind as graphs.

    Args:
        device: of the buffers.
        required: whether a step that can't be captured raises; otherwise it warns once and steps
            run without graphs.
    """

    def __init__(self, device: GraphDevice, *, required: bool):
        self._device, self._required = device, required
        self._off = False
        self._warmed: dict[Hashable, int] = {}
        self._replays: dict[Hashable, Step] = {}

    def fresh(self) -> Graphs:
        """Returns graphs of other buffers on the same device."""
        new = Graphs(self._device, required=self._required)
        new._off = self._off
        return new

    def forget(self) -> None:
        """Drops all graphs, because a buffer has moved."""
        self._warmed.clear()
        self._replays.clear()

    def ready(self, kind: Hashable) -> bool:
        """Returns whether steps of this kind have warmed up and may be captured."""
        return not self._off and self._warmed.get(kind, 0) >= WARM_UP

    def run(self, kind: Hashable, variant: Hashable, step: Step) -> None:
        """Executes a step.

        Args:
            kind: of the work; steps of one kind start the same kernels.
            variant: which of the graphs of this kind it is. Steps of equal kind and variant do the
                same to the same buffers.
        """
        key = (kind, variant)
        if key in self._replays:
            return self._replays[key]()
        if self._off:
            return step()
        if not self.ready(kind):
            count = self._warmed[kind] = self._warmed.get(kind, 0) + 1
            if count < WARM_UP:
                return self._device.warm(step)
            lines = self._device.watch(step)
            if lines:
                self._refuse(f"it reads the device in {lines[0]}")
            return None
        try:
            replay = self._device.capture(step)
        except RuntimeError as error:
            self._refuse(str(error), error)
            return step()
        self._replays[key] = replay
        return replay()

    def _refuse(self, reason: str, error: Exception | None = None) -> None:
        """Goes on without graphs, with one warning. Raises RuntimeError where they are required."""
        self.forget()
        self._off = True
        if self._required:
            raise RuntimeError(
                f"fastdiff.Sampler: expected a step that CUDA can capture, got one that it can't:"
                f" {reason}. Pass graph=False."
            ) from error
        warnings.warn(
            f"fastdiff.Sampler: no CUDA graph, because a step can't be captured: {reason}",
            stacklevel=2,
        )


class CudaDevice:
    """A GPU's side stream and the memory pool of its graphs."""

    def __init__(self, device: torch.device):
        self.device, self.side = device, torch.cuda.Stream(device)
        self._pool: Any = None
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()  # those that use the pool
        self._replaying = threading.Lock()
        self._replayed_on: Any = None  # the stream of the latest replay

    def warm(self, step: Step) -> None:
        current = torch.cuda.current_stream(self.device)
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            step()
        current.wait_stream(self.side)

    def watch(self, step: Step) -> list[str]:
        with _LOCK, _reads_of_the_device() as lines:
            self.warm(step)
        return lines

    def capture(self, step: Step) -> Step:
        with _LOCK:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("another capture is under way")
            graph = torch.cuda.CUDAGraph()
            if not self._graphs:  # torch refuses a pool that no graph holds any more
                self._pool = torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream(self.device)
            self.side.wait_stream(current)
            with torch.cuda.stream(self.side):
                self._record(graph, step)
            current.wait_stream(self.side)
            self._graphs.add(graph)
        return lambda: self._replay(graph)

    def _record(self, graph: Any, step: Step) -> None:
        """Captures on the current stream; after an error the pool is closed and released."""
        failure: BaseException | None = None
        ended = False
        try:
            # thread_local: other threads may allocate meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            except BaseException as error:
                failure = error
            graph.capture_end()
            ended = True
        except RuntimeError as error:
            failure = failure or error  # the step's error says why the capture is invalid
        finally:
            if not ended:
                self._close_pool()
                self._free_generator()
        if failure is not None:
            raise failure

    def _close_pool(self) -> None:
        """Closes the pool, which torch leaves open where a capture can't begin or end."""
        index = self.device.index
        if index is None:
            index = torch.cuda.current_device()
        try:
            torch._C._cuda_endAllocateToPool(index, self._pool)
        except RuntimeError:
            return  # it is closed
        torch._C._cuda_releasePool(index, self._pool)

    def _free_generator(self) -> None:
        """Ends a capture of nothing.

        A capture that can't end leaves torch's random generator marked as captured, in versions
        that have one mark for all captures; the next capture that ends takes the mark away.
        """
        empty = torch.cuda.CUDAGraph()
        try:
            empty.capture_begin(
                pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local"
            )
            empty.capture_end()
        except RuntimeError:
            pass  # the device is beyond help; the step's error says why

    def _replay(self, graph: Any) -> None:
        """Replays after all earlier replays, which use the same memory, on whatever stream."""
        current = torch.cuda.current_stream(self.device)
        with self._replaying:
            if self._replayed_on != current:
                if self._replayed_on is not None:
                    current.wait_stream(self._replayed_on)
                self._replayed_on = current
            graph.replay()


@contextmanager
def _reads_of_the_device() -> Iterator[list[str]]:
    """Yields a list to which the lines that read a GPU from this thread are added.

    torch reports a read as a warning. Its other mode raises an error; but the mode is the
    process's, and reads in other threads are none of our business.
    """
    lines: list[str] = []
    thread, mode = threading.get_ident(), torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_SYNCHRONIZING)
        show = warnings.showwarning

        def note(message: Any, *where: Any, **options: Any) -> None:
            if threading.get_ident() == thread and _SYNCHRONIZING in str(message):
                lines.append(_line_outside(sys._getframe(1)))
            else:
                show(message, *where, **options)

        warnings.showwarning = note
        try:
            torch.cuda.set_sync_debug_mode("warn")
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _line_outside(frame: Any) -> str:
    """Returns `file:line` of the innermost frame outside torch, fastdiff and the warnings."""
    innermost = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_INSIDE) and name != warnings.__file__:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return innermost


_devices: dict[torch.device, CudaDevice] = {}


def graphs(option: bool | str, device: torch.device) -> Graphs | None:
    """Returns the graphs of new buffers, or None where they are off; `auto` means on for CUDA."""
    if option == "auto" and device.type != "cuda" or option is False:
        return None
    if device.type != "cuda":
        raise ValueError(
            f"fastdiff.Sampler: expected a CUDA device for graph=True, got {device}. Pass"
            " graph='auto'."
        )
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with _LOCK:
        found = _devices.get(device)
        if found is None:
            found = _devices[device] = CudaDevice(device)
    return Graphs(found, required=option is True)
