"""Captured launches on a GPU: replays, error words, compiled functions, captures that fail."""

from __future__ import annotations

import gc

import pytest
import torch
from on_gpu import DEVICE, in_a_new_process, step_inputs

import fastdiff
from fastdiff import ops
from fastdiff.sampling.graph import CudaDevice

pytestmark = pytest.mark.needs_gpu

SET_UP = """
import gc
import pytest, torch
import fastdiff
from fastdiff import Schedule, ops
from fastdiff.solvers import make_plan

plan = make_plan(Schedule.linear(1000), solver="ddpm", steps=20, clip_range=1.0)
table = torch.tensor(plan.table, device="cuda")
x, out = (torch.randn(5, 3, 8, 9, device="cuda") for _ in range(2))
row = torch.zeros(5, dtype=torch.int64, device="cuda")
bad = torch.tensor([0, 1, len(table), 2, 3], device="cuda")

def step(x, out, row):
    return ops.reverse_step(x, out, table, row, seed=1, used=plan.used)

def reports_a_bad_row():
    step(x, out, bad)
    with pytest.raises(IndexError, match="expected row inside the table"):
        fastdiff.backend.check("cuda")
    fastdiff.backend.check("cuda")
"""


def test_a_captured_step_replays(gpu: str) -> None:
    plan, table, x, out = step_inputs()
    row, start = torch.zeros(5, dtype=torch.int64, device=DEVICE), x.clone()
    following = torch.empty_like(row)

    def step() -> None:
        ops.reverse_step(x, out, table, row, seed=1, used=plan.used, out=x, row_out=following)
        row.copy_(following)

    expected = []
    for _ in range(4):
        step()
        expected.append(x.clone())
    x.copy_(start)
    row.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    x.copy_(start)
    row.zero_()
    for want in expected:
        graph.replay()
        assert torch.equal(x, want)


def test_a_replay_reports_a_bad_row(gpu: str) -> None:
    """Its error word outlives the graph."""
    plan, table, x, out = step_inputs()
    row = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    result = torch.empty_like(x)

    def step() -> None:
        ops.reverse_step(x, out, table, row, seed=1, used=plan.used, out=result)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    fastdiff.backend.check(DEVICE)
    row[2] = len(table)
    graph.replay()
    assert result.flatten(1).isnan().all(1).tolist() == [False, False, True, False, False]
    with pytest.raises(IndexError, match="expected row inside the table"):
        fastdiff.backend.check(DEVICE)
    graph.reset()
    del graph
    gc.collect()
    torch.cuda.empty_cache()
    step()
    with pytest.raises(IndexError, match="expected row inside the table"):
        fastdiff.backend.check(DEVICE)


def test_the_first_launch_of_a_process_is_not_captured(gpu: str) -> None:
    """It is refused, and captured once the backend has what it keeps."""
    in_a_new_process(
        gpu,
        SET_UP
        + """
with pytest.raises(RuntimeError, match="before the first one in a CUDA graph"):
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        step(x, out, row)
torch.cuda.synchronize()
expected = step(x, out, row)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    got = step(x, out, row)
graph.replay()
assert torch.equal(got, expected)
del graph, got
gc.collect()
torch.cuda.empty_cache()
reports_a_bad_row()
""",
    )


def test_the_first_launch_may_be_in_a_compiled_function(gpu: str) -> None:
    """With torch.compile's graphs; what the backend keeps outlives them."""
    in_a_new_process(
        gpu,
        SET_UP
        + """
def chain(x, out):
    return step(x, out * 2, row) + 1

compiled = torch.compile(chain, fullgraph=True, mode="reduce-overhead")
results = []
for _ in range(4):
    torch.compiler.cudagraph_mark_step_begin()
    results.append(compiled(x, out).clone())
expected = chain(x, out)
assert all(torch.equal(result, expected) for result in results)
reports_a_bad_row()
del compiled, results
torch._dynamo.reset()
gc.collect()
torch.cuda.empty_cache()
reports_a_bad_row()
""",
    )


def test_a_capture_that_fails_leaves_nothing(gpu: str) -> None:
    """The caller's stream, the allocator and the pool are as before, and the next one works."""
    plan, table, x, out = step_inputs()
    row, result = torch.zeros(5, dtype=torch.int64, device=DEVICE), torch.empty_like(x)

    def step() -> None:
        ops.reverse_step(x, out, table, row, seed=1, used=plan.used, out=result)

    def reading() -> None:
        step()
        torch.empty(1 << 20, device=DEVICE)
        float(result.sum())

    device = CudaDevice(torch.device(DEVICE, 0))
    device.warm(step)
    expected = result.clone()
    stream = torch.cuda.current_stream()
    for _ in range(3):
        with pytest.raises(RuntimeError):
            device.capture(reading)
        assert torch.cuda.current_stream() == stream
        assert not torch.cuda.is_current_stream_capturing()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == before
    torch.randn(3, device=DEVICE)  # torch's generator is no longer captured
    replay = device.capture(step)
    result.fill_(torch.nan)
    replay()
    assert torch.equal(result, expected)
