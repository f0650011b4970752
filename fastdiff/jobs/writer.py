"""Background writers: threads that encode, hash and write units while the next one is computed.

A computed unit is copied to the host asynchronously (from a GPU through pinned memory, on a
separate stream) and put into a bounded queue. The writer threads take it from there; zlib, SHA-256
and file calls release the GIL.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import torch

from .drawn import DrawnUnit
from .extend import check_kept, drop_kept
from .folder import Content, Folder
from .formats import FORMATS, Block, pixels_sha256
from .samples import provenance
from .trajectory import encode, fields

DEPTH = 4  # units in the queue; with more, sampling waits
THREADS = 2  # that write


_ARRAY, _FINITE = "array", "finite"  # names in a HostCopy, next to those of a trajectory


class FinishedUnit(NamedTuple):
    """A unit that is on disk.

    Attributes:
        unit: its number.
        ids: its sample ids.
        array: its samples, as fastdiff.jobs.Block holds them.
        record: its record.
    """

    unit: int
    ids: range
    array: np.ndarray
    record: Mapping[str, Any]


class NonFiniteUnit(NamedTuple):
    """A unit with samples that are not finite; nothing was written."""

    unit: int


class HostCopy:
    """A copy of a unit's samples to the host, which may still be in progress."""

    def __init__(self, drawn: DrawnUnit):
        self.labels = drawn.labels
        self._event: torch.cuda.Event | None = None
        held = {} if drawn.trajectory is None else dict(fields(drawn.trajectory))
        self._tensors = {_ARRAY: drawn.array, _FINITE: drawn.finite, **held}
        if drawn.array.device.type == "cuda":
            there = self._tensors
            stream = _stream(drawn.array.device)
            stream.wait_stream(torch.cuda.current_stream(drawn.array.device))
            with torch.cuda.stream(stream):
                self._tensors = {name: _pinned(tensor) for name, tensor in there.items()}
                self._event = torch.cuda.Event()
                self._event.record(stream)
            for tensor in there.values():
                tensor.record_stream(stream)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Waits for the copy and returns (samples, finite, the fields of the trajectory)."""
        if self._event is not None:
            self._event.synchronize()
        arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        return arrays.pop(_ARRAY), arrays.pop(_FINITE), arrays


class Writers:
    """Threads that commit units to a folder.

    Where the run saves trajectories, which may be large, there is one thread, and one unit waits.

    An error of a writer (OSError in one sentence) is raised by the next call in the sampling
    thread.
    """

    def __init__(self, folder: Folder):
        spec = folder.spec
        depth, threads = (DEPTH, THREADS) if spec.save is None else (1, 1)
        self._folder, self._format = folder, FORMATS[spec.format]
        self._provenance = provenance(spec.to_json())
        self._waiting: queue.Queue[tuple[int, range, HostCopy, float] | None] = queue.Queue(depth)
        self._results: queue.SimpleQueue[FinishedUnit | NonFiniteUnit] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"fastdiff-writer-{i}") for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Units that wait for a writer."""
        return self._waiting.qsize()

    def submit(self, unit: int, ids: range, samples: HostCopy, seconds: float) -> None:
        """Queues a unit; waits only while the queue is full.

        seconds: that its computation took.
        """
        while self._error is None:
            try:
                self._waiting.put((unit, ids, samples, seconds), timeout=0.2)
                return
            except queue.Full:
                continue
        raise self._error

    def results(self) -> list[FinishedUnit | NonFiniteUnit]:
        """Returns the units that were handled since the last call, in that order."""
        if self._error is not None:
            raise self._error
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def close(self) -> list[FinishedUnit | NonFiniteUnit]:
        """Waits until all queued units are handled and returns the remaining results.

        If it is interrupted, the threads end after their current units.
        """
        try:
            for _ in self._threads:
                while self._error is None:
                    try:
                        self._waiting.put(None, timeout=0.2)
                        break
                    except queue.Full:
                        continue
            for thread in self._threads:
                thread.join()
        except BaseException as error:
            self._error = self._error or error
            raise
        return self.results()

    def _work(self) -> None:
        while self._error is None:
            try:
                item = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None:
                return
            try:
                self._results.put(self._write(*item))
            except BaseException as error:
                self._error = error
                return

    def _write(
        self, unit: int, ids: range, samples: HostCopy, seconds: float
    ) -> FinishedUnit | NonFiniteUnit:
        array, finite, trajectory = samples.arrays()
        if not finite.all():
            return NonFiniteUnit(unit)
        spec = self._folder.spec
        block = Block(unit, ids.start, spec.seed, array, samples.labels)
        record = new_record(block, self._folder.worker, seconds)
        files: Iterable[tuple[str, Content]] = self._format.files(block, self._provenance)
        if spec.save is not None:
            files = [*files, encode(spec, unit, trajectory)]
        gained = check_kept(self._folder, unit, ids, array)
        complete = self._folder.commit(unit, files, record)
        if gained:
            drop_kept(self._folder, unit)
        return FinishedUnit(unit, ids, array, complete)


def new_record(block: Block, worker: str, seconds: float) -> dict[str, Any]:
    """Returns the record of a unit without its files.

    worker: that made it. seconds: that its computation took.
    """
    return {
        "unit": block.unit,
        "first": block.first,
        "stop": block.ids.stop,
        "seed": block.seed,
        "labels": block.labels,
        "shape": list(block.array.shape),
        "dtype": block.array.dtype.name,
        "pixels": pixels_sha256(block.array),
        "made": {
            "worker": worker,
            "seconds": round(seconds, 4),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "unix": round(time.time(), 3),
        },
    }


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Starts a copy to pinned memory, which torch's allocator reuses for later units."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
