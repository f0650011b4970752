"""Background writers: encoding, hashing and the disk never hold up the thread that samples.

A finished unit is copied to the host beside the computation (on a GPU through page-locked memory,
on a stream of its own)
and put into a bounded queue. Threads take it from there: zlib, SHA-256 and file calls release the
    interpreter.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import torch

from .folder import Folder
from .formats import FORMATS, Block, pixels_sha256
from .job import Drawn

DEPTH = 4  # units that wait for a writer before sampling does


class Finished(NamedTuple):
    """A unit that is on disk. Attributes: its number, ids, samples and record."""

    unit: int
    ids: range
    array: np.ndarray
    record: Mapping[str, Any]


class Unfinite(NamedTuple):
    """A unit with numbers that are not finite; nothing was written."""

    unit: int


class Staged:
    """Samples on their way to the host."""

    def __init__(self, drawn: Drawn):
        self.labels = drawn.labels
        self._event: torch.cuda.Event | None = None
        self._array, self._finite = drawn.array, drawn.finite
        if drawn.array.device.type == "cuda":
            stream = _stream(drawn.array.device)
            stream.wait_stream(torch.cuda.current_stream(drawn.array.device))
            with torch.cuda.stream(stream):
                self._array, self._finite = (_pinned(t) for t in (drawn.array, drawn.finite))
                self._event = torch.cuda.Event()
                self._event.record(stream)
            for tensor in (drawn.array, drawn.finite):
                tensor.record_stream(stream)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(samples, finite) once they are there; called by a writer."""
        if self._event is not None:
            self._event.synchronize()
        return self._array.numpy(), self._finite.numpy()


class Writers:
    """Threads that commit units to a folder. `results` holds what they have done, in the order they
    did it.

    Raises what a writer met (OSError in one sentence) from the next call in the sampling thread.
    """

    def __init__(self, folder: Folder, threads: int = 2):
        spec = folder.spec
        self._folder, self._format = folder, FORMATS[spec.format]
        self._provenance = {
            "spec": spec.hash,
            "plan": spec.plan.hash,
            "fastdiff": str(spec.machine["fastdiff"]),
        }
        self._waiting: queue.Queue[tuple[int, range, Staged, float] | None] = queue.Queue(DEPTH)
        self._results: queue.SimpleQueue[Finished | Unfinite] = queue.SimpleQueue()
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

    def submit(self, unit: int, ids: range, staged: Staged, seconds: float) -> None:
        """Hands a unit over; waits only when `DEPTH` others wait already."""
        while self._error is None:
            try:
                self._waiting.put((unit, ids, staged, seconds), timeout=0.2)
                return
            except queue.Full:
                continue
        raise self._error

    def results(self) -> list[Finished | Unfinite]:
        """What was done since the last call."""
        if self._error is not None:
            raise self._error
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def close(self) -> list[Finished | Unfinite]:
        """Waits for all that was handed over. Interrupted, it lets the threads end after the units
        in their hands.
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

    def _write(self, unit: int, ids: range, staged: Staged, seconds: float) -> Finished | Unfinite:
        array, finite = staged.arrays()
        if not finite.all():
            return Unfinite(unit)
        spec = self._folder.spec
        block = Block(unit, ids.start, spec.seed, array, staged.labels)
        record = {
            "unit": unit,
            "first": ids.start,
            "stop": ids.stop,
            "seed": spec.seed,
            "labels": staged.labels,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "pixels": pixels_sha256(array),
            "made": {
                "worker": self._folder.worker,
                "seconds": round(seconds, 4),
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "unix": round(time.time(), 3),
            },
        }
        complete = self._folder.commit(unit, self._format.files(block, self._provenance), record)
        return Finished(unit, ids, array, complete)


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in page-locked memory, which torch keeps and hands out again: two units' worth are in
    use at a time.
    """
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
