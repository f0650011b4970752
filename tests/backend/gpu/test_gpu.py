"""Tests that need a GPU: bits, error words, streams, graphs, memory past 2³¹ elements.

`make gpu-test` runs them. Without a GPU they are collected and skipped, so that their number shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import ACCELERATED, FAST_NOISE

import fastdiff
from fastdiff import Sampler, Schedule, ops
from fastdiff.models import UNet
from fastdiff.reference.randn import _box_muller, philox4x32
from fastdiff.solvers import make_plan

GOLDEN = Path(__file__).parents[2] / "golden" / "noise_v1.json"
SCHEDULE = Schedule.linear(1000)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(params=["triton", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Selects each GPU backend in turn; one that is off fails the test."""
    state = fastdiff.backends()[request.param]
    if not state.available:
        pytest.fail(f"backend {request.param} is off on a machine with a GPU: {state.reason}")
    with fastdiff.use(request.param):
        yield request.param


def _step() -> tuple:
    """Returns a DDPM plan, its table, a state and a network output for five samples."""
    plan = make_plan(SCHEDULE, solver="ddpm", steps=20, clip_range=1.0)
    x, out = (ops.randn((5, 3, 8, 9), seed=s, device="cuda") for s in (1, 2))
    return plan, torch.tensor(plan.table, device="cuda"), x, out


def test_bits_of_the_golden_file(gpu: str) -> None:
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]:
        got = ops.randn(
            (1, case["elements"]),
            seed=case["seed"],
            sample_ids=torch.tensor([case["sample_id"]], device="cuda"),
            step=case["step"],
            stream=case["stream"],
        )
        assert " ".join(f"{b:08x}" for b in got.cpu().numpy().view(np.uint32)[0]) == case["bits"], (
            case
        )


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_a_run_has_the_bits_of_the_cpu(gpu: str, solver: str) -> None:
    sampler = Sampler(lambda x, t: 0.3 * x, SCHEDULE, solver=solver, steps=12, clip_range=1.0)
    start = ops.randn((6, 3, 33), seed=5)
    with fastdiff.use("torch"):
        expected = sampler.sample(x_T=start, seed=5)
    assert torch.equal(sampler.sample(x_T=start.cuda(), seed=5).cpu(), expected)


def test_ops_never_wait_for_the_device(gpu: str) -> None:
    """In the mode in which torch raises at a synchronization."""
    plan, table, x, out = _step()
    row, following = (torch.zeros(5, dtype=torch.int64, device="cuda") for _ in range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            ops.reverse_step(x, out, table, row, seed=1, used=plan.used, out=x, row_out=following)
            row, following = following, row
        kl = ops.gaussian_kl(x, out)
        loss = ops.noise_mse(out, seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert kl.isfinite().all() and loss.isfinite().all()


def test_a_bad_row_is_nan_and_reported_later(gpu: str) -> None:
    plan, table, x, out = _step()
    row = torch.tensor([0, 1, len(table), 2, -1], device="cuda")
    result = ops.reverse_step(x, out, table, row, seed=1, used=plan.used)
    assert result.flatten(1).isnan().all(1).tolist() == [False, False, True, False, True]
    with pytest.raises(IndexError, match="fastdiff.reverse_step: expected row inside the table"):
        fastdiff.backend.check("cuda")
    fastdiff.backend.check("cuda")  # the error is raised once


def test_a_side_stream(gpu: str) -> None:
    """An op launches on the current stream, behind the work that is queued there."""
    plan, table, x, out = _step()
    row = torch.zeros(5, dtype=torch.int64, device="cuda")
    expected = ops.reverse_step(x, out, table, row, seed=1, used=plan.used)
    side, late = torch.cuda.Stream(), torch.empty(64 << 20, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late.normal_()  # keeps the stream busy: a launch elsewhere would come first
        moved = x + late[:1] * 0
        got = ops.reverse_step(moved, out, table, row, seed=1, used=plan.used)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(got, expected)


def test_a_captured_step_replays(gpu: str) -> None:
    plan, table, x, out = _step()
    row, start = torch.zeros(5, dtype=torch.int64, device="cuda"), x.clone()
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


def test_reduce_overhead_compilation(gpu: str) -> None:
    plan, table, x, out = _step()
    row = torch.zeros(5, dtype=torch.int64, device="cuda")

    def chain(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return ops.reverse_step(x, out * 2, table, row, seed=1, used=plan.used) + 1

    compiled = torch.compile(chain, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        assert torch.equal(compiled(x, out).clone(), chain(x, out))


def test_the_second_launch_equals_the_first(gpu: str) -> None:
    """Ops that sum over a sample give the same bits again: no sum depends on the threads' order."""
    a, b = (ops.randn((64, 3, 40, 41), seed=s, device="cuda") for s in (1, 2))
    x0 = a.clamp(-1, 1)
    for run in (
        lambda: ops.gaussian_kl(a, b),
        lambda: ops.discretized_gaussian_nll(x0, b, a - 3),
        lambda: ops.noise_mse(a, seed=3),
        lambda: ops.reparameterize(a, b, seed=3),
    ):
        first = run()
        assert all(torch.equal(run(), first) for _ in range(5))
        assert torch.equal(run()[:7], first[:7])


def test_more_than_two_to_the_31_elements(gpu: str) -> None:
    n = 2**31 + 11
    buffer = torch.full((n + 2,), 7.0, dtype=torch.bfloat16, device="cuda")
    x = buffer[1:-1].view(1, n)
    ops.randn((1, n), seed=3, out=x)
    assert buffer[0] == 7 and buffer[-1] == 7
    whole = ops.randn((1, 64), seed=3, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(x[:, :64], whole)
    # a draw in float32, rounded, is the draw in bfloat16 at the end too
    again = torch.empty((1, n), dtype=torch.float32, device="cuda")
    ops.randn((1, n), seed=3, out=again)
    assert torch.equal(again[:, -100:].to(torch.bfloat16), x[:, -100:])
    words = philox4x32(np.array([2**29, 0, 0, 0]), np.array([3, 0]))
    first, second = _box_muller(words[[0, 2]], words[[1, 3]])
    assert np.array_equal(
        again[0, 2**31 : 2**31 + 4].cpu().numpy(), np.stack([first, second], 1).ravel()
    )
    del again, whole
    t = torch.zeros(1, dtype=torch.int64, device="cuda")
    one = torch.ones(1, dtype=torch.float64, device="cuda")
    ops.q_sample(x, t, one, one * 0, seed=1, out=x)
    assert buffer[0] == 7 and buffer[-1] == 7 and bool(x[0, -1].isfinite())


def test_fast_mode_is_near_exact_mode(gpu: str) -> None:
    exact = ops.randn((16, 10_000), seed=9, device="cuda")
    fast = ops.randn((16, 10_000), seed=9, device="cuda", mode="fast")
    assert (exact - fast).abs().max() < FAST_NOISE


def test_an_accelerated_network_is_the_network(gpu: str) -> None:
    """The norms run in the kernel, and weights are channels last.

    TF32 is off, so that only the order of sums differs.
    """
    torch.manual_seed(0)
    network = UNet(channels=3, size=16, widths=(32, 64)).cuda().eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    x, t, y = (
        torch.randn(4, 3, 16, 16, device="cuda"),
        torch.arange(4, device="cuda"),
        torch.arange(4, device="cuda"),
    )
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        expected, got = network(x, t, y), fastdiff.accelerate(network)(x, t, y)
    assert float((got - expected).abs().max() / expected.abs().max()) < ACCELERATED
