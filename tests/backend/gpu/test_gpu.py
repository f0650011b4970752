"""Tests that need a GPU: bits, error words, streams, memory past 2³¹ elements.

`make gpu-test` runs them. Without a GPU they are collected and skipped, so that their number shows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from on_gpu import DEVICE, SCHEDULE, step_inputs
from tolerances import ACCELERATED, FAST_NOISE

import fastdiff
from fastdiff import Sampler, ops
from fastdiff.models import UNet
from fastdiff.reference.randn import _box_muller, philox4x32

GOLDEN = Path(__file__).parents[2] / "golden" / "noise_v1.json"
needs_gpu = pytest.mark.needs_gpu


def test_bits_of_the_golden_file(gpu: str) -> None:
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]:
        got = ops.randn(
            (1, case["elements"]),
            seed=case["seed"],
            sample_ids=torch.tensor([case["sample_id"]], device=DEVICE),
            step=case["step"],
            stream=case["stream"],
        )
        assert got.device.type == DEVICE, "the device of the backend in use"
        assert " ".join(f"{b:08x}" for b in got.cpu().numpy().view(np.uint32)[0]) == case["bits"], (
            case
        )


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_a_run_has_the_bits_of_the_cpu(gpu: str, solver: str) -> None:
    sampler = Sampler(lambda x, t: 0.3 * x, SCHEDULE, solver=solver, steps=12, clip_range=1.0)
    with fastdiff.use("torch"):
        start = ops.randn((6, 3, 33), seed=5, device="cpu")
        expected = sampler.sample(x_T=start, seed=5)
    assert torch.equal(sampler.sample(x_T=start.to(DEVICE), seed=5).cpu(), expected)


@needs_gpu
def test_ops_never_wait_for_the_device(gpu: str) -> None:
    """In the mode in which torch raises at a synchronization.

    All tensors are uploaded before, and a first call may allocate what its backend keeps.
    """
    plan, table, x, out = step_inputs()
    row, following = (torch.zeros(5, dtype=torch.int64, device=DEVICE) for _ in range(2))
    ids = torch.arange(5, device=DEVICE)

    def step() -> None:
        ops.reverse_step(x, out, table, row, seed=1, used=plan.used, out=x, row_out=following)

    def others() -> list[torch.Tensor]:
        kept = [ops.gaussian_kl(x, out), ops.noise_mse(out, seed=1)]
        return [*kept, ops.randn((5, 7), seed=3, sample_ids=ids, device=DEVICE)]

    step()
    others()
    row.zero_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
            row, following = following, row
        results = others()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.isfinite().all() for result in results) and row.tolist() == [3] * 5


@needs_gpu
def test_a_bad_row_is_nan_and_reported_later(gpu: str) -> None:
    plan, table, x, out = step_inputs()
    row = torch.tensor([0, 1, len(table), 2, -1], device=DEVICE)
    result = ops.reverse_step(x, out, table, row, seed=1, used=plan.used)
    assert result.flatten(1).isnan().all(1).tolist() == [False, False, True, False, True]
    with pytest.raises(IndexError, match="fastdiff.reverse_step: expected row inside the table"):
        fastdiff.backend.check("cuda")
    fastdiff.backend.check("cuda")  # the error is raised once


@needs_gpu
def test_a_side_stream(gpu: str) -> None:
    """An op launches on the current stream, behind the work that is queued there."""
    plan, table, x, out = step_inputs()
    row = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    expected = ops.reverse_step(x, out, table, row, seed=1, used=plan.used)
    side, late = torch.cuda.Stream(), torch.empty(64 << 20, device=DEVICE)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late.normal_()  # keeps the stream busy: a launch elsewhere would come first
        moved = x + late[:1] * 0
        got = ops.reverse_step(moved, out, table, row, seed=1, used=plan.used)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(got, expected)


def test_the_second_launch_equals_the_first(gpu: str) -> None:
    """Ops that sum over a sample give the same bits again: no sum depends on the threads' order."""
    a, b = (ops.randn((64, 3, 40, 41), seed=s, device=DEVICE) for s in (1, 2))
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


@needs_gpu
def test_more_than_two_to_the_31_elements(gpu: str) -> None:
    n = 2**31 + 11
    buffer = torch.full((n + 2,), 7.0, dtype=torch.bfloat16, device=DEVICE)
    x = buffer[1:-1].view(1, n)
    ops.randn((1, n), seed=3, out=x)
    assert buffer[0] == 7 and buffer[-1] == 7
    whole = ops.randn((1, 64), seed=3, device=DEVICE, dtype=torch.bfloat16)
    assert torch.equal(x[:, :64], whole)
    # a draw in float32, rounded, is the draw in bfloat16 at the end too
    again = torch.empty((1, n), dtype=torch.float32, device=DEVICE)
    ops.randn((1, n), seed=3, out=again)
    assert torch.equal(again[:, -100:].to(torch.bfloat16), x[:, -100:])
    words = philox4x32(np.array([2**29, 0, 0, 0]), np.array([3, 0]))
    first, second = _box_muller(words[[0, 2]], words[[1, 3]])
    assert np.array_equal(
        again[0, 2**31 : 2**31 + 4].cpu().numpy(), np.stack([first, second], 1).ravel()
    )
    del again, whole
    t = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    ops.q_sample(x, t, one, one * 0, seed=1, out=x)
    assert buffer[0] == 7 and buffer[-1] == 7 and bool(x[0, -1].isfinite())


def test_fast_mode_is_near_exact_mode(gpu: str) -> None:
    exact = ops.randn((16, 10_000), seed=9, device=DEVICE)
    fast = ops.randn((16, 10_000), seed=9, device=DEVICE, mode="fast")
    assert (exact - fast).abs().max() < FAST_NOISE


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_group_norm(gpu: str, batch: int, dtype: torch.dtype, last: bool) -> None:
    """Batch 1 has the bits of torch's backend on the CPU too."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 64, 12, 11, generator=g).to(dtype)
    weight, bias = (torch.randn(64, generator=g).to(dtype) for _ in range(2))
    add = torch.randn(batch, 64, generator=g).to(dtype)
    with fastdiff.use("torch"):
        expected = ops.group_norm_silu(x, 32, weight, bias, add=add)
    there = [v.to(DEVICE) for v in (x, weight, bias, add)]
    if last:
        there[0] = there[0].contiguous(memory_format=torch.channels_last)
    got = ops.group_norm_silu(there[0], 32, there[1], there[2], add=there[3])
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("batch", [1, 4])
def test_an_accelerated_network_is_the_network(
    gpu: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The norms run in the kernel, and weights are channels last.

    TF32 is off, so that only the order of sums differs.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    network = UNet(channels=3, size=16, widths=(32, 64)).to(DEVICE).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(batch, 3, 16, 16, device=DEVICE)
    t, y = (torch.arange(batch, device=DEVICE) for _ in range(2))
    with torch.no_grad():
        expected, got = network(x, t, y), fastdiff.accelerate(network)(x, t, y)
    assert float((got - expected).abs().max() / expected.abs().max()) < ACCELERATED
