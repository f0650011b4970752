"""CUDA graphs on a stand-in for torch.cuda: order of calls, failures, streams, pools, and threads.

The stand-in has torch's rules: one capture at a time, an allocator whose pool is open from the
begin of a capture to its end, a capture that a read of the device makes invalid, and a pool that
can't be used again once no graph holds it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiff.sampling import graph as module
from fastdiff.sampling.graph import WARM_UP, CudaDevice, Graphs


class Stream:
    def __init__(self, cuda: FakeCuda, name: str):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: Stream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class Graph:
    """torch.cuda.CUDAGraph: its step's kernels run again at each replay."""

    def __init__(self, cuda: FakeCuda):
        self.cuda = cuda
        self.kernels: list[Callable[[], None]] = []

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert self.cuda.capturing is None, "two captures at a time"
        assert capture_error_mode == "thread_local"
        assert self.cuda.stream is not self.cuda.default, "a capture on the default stream"
        assert pool not in self.cuda.dead, "a pool that no graph holds any more"
        self.cuda.capturing, self.cuda.invalid = self, False
        self.cuda.open.add(pool)
        self.cuda.held[pool] = self.cuda.held.get(pool, 0) + 1
        self.pool = pool
        self.cuda.generator_captured = True
        self.cuda.log.append("begin")

    def capture_end(self) -> None:
        self.cuda.capturing = None
        self.cuda.log.append("end")
        if self.cuda.invalid:
            raise RuntimeError("CUDA error: operation failed due to a previous error")
        self.cuda.open.discard(self.pool)
        self.cuda.generator_captured = False
        self.complete = True

    def replay(self) -> None:
        self.cuda.log.append(f"replay on {self.cuda.stream.name}")
        for kernel in self.kernels:
            kernel()

    def __del__(self) -> None:
        if getattr(self, "complete", False):
            self.cuda.release(0, self.pool)


class FakeCuda:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.default = self.stream = Stream(self, "default")
        self.capturing: Graph | None = None
        self.invalid = False
        self.open: set[int] = set()
        self.held: dict[int, int] = {}
        self.dead: set[int] = set()
        self.mode, self.pools, self.sides = 0, 0, 0
        self.generator_captured = False

    # what a step does

    def kernel(self, work: Callable[[], None]) -> None:
        """A launch: captured, or executed at once."""
        if self.capturing is not None:
            self.capturing.kernels.append(work)
        else:
            work()

    def read(self) -> None:
        """A read of the device from the host."""
        if self.capturing is not None:
            self.invalid = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if self.mode == 1:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    def empty_cache(self) -> None:
        assert not self.open, "the allocator's pool is open"

    # torch.cuda

    def new_stream(self, device: Any) -> Stream:
        self.sides += 1
        return Stream(self, f"side {self.sides}")

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def pool(self) -> int:
        self.pools += 1
        return self.pools

    def end_allocate(self, index: int, pool: int) -> None:
        if pool not in self.open:
            raise RuntimeError("not recording to this pool")
        self.open.discard(pool)

    def release(self, index: int, pool: int) -> None:
        self.held[pool] -= 1
        assert self.held[pool] >= 0
        if not self.held[pool]:
            self.dead.add(pool)

    def set_mode(self, mode: str | int) -> None:
        self.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)  # type: ignore[assignment, call-overload, arg-type]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    names = SimpleNamespace(
        Stream=fake.new_stream,
        CUDAGraph=lambda: Graph(fake),
        stream=fake.on,
        current_stream=lambda _: fake.stream,
        current_device=lambda: 0,
        graph_pool_handle=fake.pool,
        is_current_stream_capturing=lambda: fake.capturing is not None,
        get_sync_debug_mode=lambda: fake.mode,
        set_sync_debug_mode=fake.set_mode,
    )
    calls = SimpleNamespace(
        _cuda_endAllocateToPool=fake.end_allocate, _cuda_releasePool=fake.release
    )
    monkeypatch.setattr(
        module,
        "torch",
        SimpleNamespace(cuda=names, _C=calls, device=torch.device, __file__=torch.__file__),
    )
    monkeypatch.setattr(module, "_devices", {})
    return fake


def _graphs(option: bool | str = "auto") -> Graphs:
    found = module.graphs(option, torch.device("cuda", 0))
    assert found is not None
    return found


def _counter(cuda: FakeCuda) -> tuple[list[int], Callable[[], None]]:
    """A step that counts how often its kernel ran."""
    count = [0]

    def kernel() -> None:
        count[0] += 1

    return count, lambda: cuda.kernel(kernel)


def test_a_step_warms_up_on_the_side_stream_and_then_replays(cuda: FakeCuda) -> None:
    graphs, (count, step) = _graphs(), _counter(cuda)
    for _ in range(5):
        graphs.run("both", 0, step)
    assert count == [5]
    warm = ["side 1 waits for default", "default waits for side 1"]
    capture = ["side 1 waits for default", "begin", "end", "default waits for side 1"]
    assert cuda.log == [*warm * WARM_UP, *capture, *["replay on default"] * 3]
    assert cuda.stream is cuda.default and cuda.mode == 0 and not cuda.open


def test_a_step_that_reads_the_device_is_not_captured(cuda: FakeCuda) -> None:
    graphs, (count, step) = _graphs(), _counter(cuda)

    def reading() -> None:
        step()
        cuda.read()

    with pytest.warns(UserWarning, match=r"no CUDA graph.*reads the device in .*test_graph.py:\d+"):
        for _ in range(5):
            graphs.run("both", 0, reading)
    assert count == [5] and "begin" not in cuda.log and cuda.mode == 0
    cuda.empty_cache()
    required = _graphs(True)
    with pytest.raises(RuntimeError, match=r"expected a step that CUDA can capture.*test_graph.py"):
        for _ in range(WARM_UP):
            required.run("both", 0, reading)
    assert cuda.mode == 0 and cuda.stream is cuda.default


def test_other_warnings_of_a_watched_step_are_shown(cuda: FakeCuda) -> None:
    def talking() -> None:
        warnings.warn("something else", stacklevel=1)

    graphs = _graphs()
    with pytest.warns(UserWarning, match="something else"):
        for _ in range(WARM_UP):
            graphs.run("both", 0, talking)
    assert graphs.ready("both")


def test_a_failed_capture_leaves_nothing_behind(cuda: FakeCuda) -> None:
    """The stream, the allocator's pool and the lock; the next capture succeeds."""
    graphs, (count, step) = _graphs(), _counter(cuda)
    fine, calls = _counter(cuda)[1], [0]

    def late() -> None:
        step()
        calls[0] += 1
        if calls[0] == WARM_UP + 1:
            cuda.read()  # which the watched step did not do

    kept = _graphs()
    for _ in range(WARM_UP + 1):
        kept.run("other", 0, fine)
    with pytest.warns(UserWarning, match="can't be captured: CUDA error: operation not permitted"):
        for _ in range(5):
            graphs.run("both", 0, late)
    assert count == [5]
    assert cuda.stream is cuda.default and cuda.capturing is None and cuda.mode == 0
    cuda.empty_cache()
    assert cuda.held[1] == 1, "one graph holds the pool"
    assert not cuda.generator_captured
    again = _graphs()
    for _ in range(WARM_UP + 1):
        again.run("both", 0, step)
    assert count == [5 + WARM_UP + 1] and cuda.held[1] == 2, "the pool is used again"


def test_an_error_of_the_step_itself_during_a_capture_closes_the_pool(cuda: FakeCuda) -> None:
    graphs, calls = _graphs(), [0]

    def failing() -> None:
        calls[0] += 1
        if calls[0] > WARM_UP:
            raise ValueError("a mistake")

    for _ in range(WARM_UP):
        graphs.run("both", 0, failing)
    with pytest.raises(ValueError, match="a mistake"):
        graphs.run("both", 0, failing)
    assert cuda.stream is cuda.default and cuda.capturing is None
    cuda.empty_cache()


def test_a_pool_without_graphs_is_replaced(cuda: FakeCuda) -> None:
    for expected in (1, 2):
        graphs, (_, step) = _graphs(), _counter(cuda)
        for _ in range(WARM_UP + 1):
            graphs.run("both", 0, step)
        assert cuda.pools == expected
        graphs.forget()
        del graphs


def test_graphs_of_a_device_share_a_stream_and_a_pool(cuda: FakeCuda) -> None:
    kept = []
    for _ in range(3):
        graphs, (_, step) = _graphs(), _counter(cuda)
        for _ in range(WARM_UP + 1):
            graphs.run("both", 0, step)
        kept.append(graphs)
    assert (cuda.pools, cuda.sides) == (1, 1)


def test_replays_on_different_streams_wait_for_each_other(cuda: FakeCuda) -> None:
    """They use the same memory."""
    graphs, (_, step) = _graphs(), _counter(cuda)
    for _ in range(WARM_UP + 1):
        graphs.run("both", 0, step)
    other = Stream(cuda, "other")
    cuda.log.clear()
    with cuda.on(other):
        graphs.run("both", 0, step)
        graphs.run("both", 0, step)
    graphs.run("both", 0, step)
    assert cuda.log == [
        "other waits for default",
        "replay on other",
        "replay on other",
        "default waits for other",
        "replay on default",
    ]


def test_captures_of_threads_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads that capture at once: no capture begins before the other's end."""
    active, most = [0], [0]

    def record(self: CudaDevice, graph: Any, step: Callable[[], None]) -> None:
        active[0] += 1
        most[0] = max(most[0], active[0])
        step()
        active[0] -= 1

    stream = SimpleNamespace(wait_stream=lambda _: None)

    @contextmanager
    def on(_: Any) -> Iterator[None]:
        yield

    names = SimpleNamespace(
        Stream=lambda _: stream,
        CUDAGraph=lambda: SimpleGraph(),
        stream=on,
        current_stream=lambda _: stream,
        graph_pool_handle=lambda: 1,
        is_current_stream_capturing=lambda: False,
        get_sync_debug_mode=lambda: 0,
        set_sync_debug_mode=lambda _: None,
    )
    monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=names, device=torch.device))
    monkeypatch.setattr(CudaDevice, "_record", record)
    device = CudaDevice(torch.device("cuda", 0))
    pause = threading.Event()

    def work() -> None:
        device.capture(lambda: bool(pause.wait(0.02)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and active == [0]


class SimpleGraph:
    def replay(self) -> None:
        pass
