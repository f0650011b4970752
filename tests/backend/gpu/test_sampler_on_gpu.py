"""The sampler on a GPU: bits with and without graphs, captures, reads of the device.

The times and the memory of 40 calls are recorded next to the tests' results.
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

import pytest
import torch
from on_gpu import DEVICE, GPU, SCHEDULE

import fastdiff
from fastdiff import Sampler
from fastdiff.sampling.graph import CudaDevice

needs_gpu = pytest.mark.needs_gpu
SHAPE = (6, 3, 16, 17)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """One whose bits are the same on every device: products and sums of single elements."""
    return 0.3 * x + 0.001 * t.to(x.dtype).view(-1, 1, 1, 1)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the captures from here on."""
    counted: list[int] = []
    real = CudaDevice.capture

    def capture(self: CudaDevice, step: Any) -> Any:
        counted.append(1)
        return real(self, step)

    monkeypatch.setattr(CudaDevice, "capture", capture)
    return counted


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm++2m", "unipc"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_graphed_eager_and_cpu_have_the_same_bits(
    gpu: str, solver: str, guided: bool, captures: list[int]
) -> None:
    def conditioned(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return network(x, t) * c.view(-1, 1, 1, 1)

    def run(device: str, graph: bool | str, calls: int = 1) -> torch.Tensor:
        options: dict[str, Any] = {"solver": solver, "steps": 24, "graph": graph}
        model = conditioned if guided else network
        sampler = Sampler(model, SCHEDULE, clip_range=1.0, **options)
        start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(device)
        arguments: dict[str, Any] = {"x_T": start, "seed": 5}
        if guided:
            ones = torch.ones(len(start), device=device)
            arguments |= {"cond": {"c": ones}, "uncond": {"c": 0.5 * ones}, "guidance_scale": 3.0}
        for _ in range(calls):
            result = sampler.sample(**arguments)
        return result.cpu()

    with fastdiff.use("torch"):
        expected = run("cpu", False)
    assert torch.equal(run(DEVICE, False), expected), "eager"
    assert not captures
    assert torch.equal(run(DEVICE, "auto"), expected), "the first call"
    assert torch.equal(run(DEVICE, "auto", calls=2), expected), "a call that replays"
    assert bool(captures) == GPU


@needs_gpu
def test_a_second_call_replays_from_its_first_step(gpu: str, captures: list[int]) -> None:
    sampler = Sampler(network, SCHEDULE, solver="ddpm", steps=30, graph=True)
    start = torch.randn(SHAPE, device=DEVICE)
    first = sampler.sample(x_T=start, seed=5)
    made, calls = len(captures), []
    real = torch.cuda.CUDAGraph.replay

    def replay(graph: Any) -> None:
        calls.append(1)
        real(graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay", replay)
        second = sampler.sample(x_T=start, seed=5)
    assert torch.equal(second, first)
    assert len(captures) == made, "the second call captures nothing"
    assert calls, "the second call replays"


def test_forty_calls(gpu: str, captures: list[int], record_property: Any) -> None:
    """Captures, memory and streams do not grow, and a later call is no slower than the first."""
    calls, steps = (40, 50) if GPU else (4, 5)
    sampler = Sampler(network, SCHEDULE, solver="ddpm", steps=steps)
    start = torch.randn(64, 3, 32, 32, device=DEVICE)
    seconds, allocated, reserved, made = [], [], [], []
    for i in range(calls):
        begin = time.perf_counter()
        sampler.sample(x_T=start, seed=i)
        if GPU:
            torch.cuda.synchronize()
            allocated.append(torch.cuda.memory_allocated())
            reserved.append(torch.cuda.memory_reserved())
        seconds.append(time.perf_counter() - begin)
        made.append(len(captures))
    record_property("first_ms", round(1e3 * seconds[0], 3))
    record_property("later_ms", round(1e3 * statistics.median(seconds[2:]), 3))
    record_property("captures", made[-1])
    if GPU:
        record_property("allocated_bytes", [allocated[0], allocated[-1]])
        record_property("reserved_bytes", [reserved[0], reserved[-1]])
        assert made[-1] == made[1], "captures after the second call"
        assert allocated[-1] == allocated[2] and reserved[-1] == reserved[2]
        assert statistics.median(seconds[2:]) < seconds[0]


@needs_gpu
def test_a_network_that_reads_the_device_leaves_nothing(gpu: str, captures: list[int]) -> None:
    """It runs without graphs after one warning that names the line; the next sampler has graphs."""

    def reading(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(x, t) * (2.0 if float(x.sum()) > 1e30 else 1.0)  # it reads here

    start, stream = torch.randn(SHAPE, device=DEVICE), torch.cuda.current_stream()
    expected = Sampler(network, SCHEDULE, steps=24, graph=False).sample(x_T=start, seed=1)
    sampler = Sampler(reading, SCHEDULE, steps=24)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(sampler.sample(x_T=start, seed=1), expected)
    lines = [str(w.message) for w in said if "no CUDA graph" in str(w.message)]
    assert lines and __file__ in lines[0], lines
    assert not captures, "a step that reads the device is not captured"
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    with pytest.raises(RuntimeError, match="CUDA can capture"):
        Sampler(reading, SCHEDULE, steps=24, graph=True).sample(x_T=start, seed=1)
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    graphed = Sampler(network, SCHEDULE, steps=24, graph=True)
    assert torch.equal(graphed.sample(x_T=start, seed=1), expected) and captures
    torch.cuda.synchronize()
