"""A program that computes several chunks of its samples writes the bits of several programs, under
TRITON_INTERPRET=1.

Started by tests/backend/test_triton.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import BITS, random_table
from fastdiff_kernels import launch
from fastdiff_kernels.launch import common
from sums import SEED, Case, compute, name, normal, rows, vlb_table
from torch import Tensor

from fastdiff.ops.step import StepArguments

# 5 chunks of 128 elements, of 8 samples at a time; for sums 5 chunks of 1024
BATCH, SIZE, LONG = 11, 600, 4500
IDS = torch.arange(BATCH) * 2**33 + 7
TABLE = torch.linspace(0.1, 0.9, 10, dtype=torch.float64)
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def unwritten(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def results(run: Callable[[], list[Tensor]], each: int, monkeypatch: pytest.MonkeyPatch) -> list:
    """What `run` writes, with `each` chunks of a program, as integers; and the programs."""
    grids = []
    monkeypatch.setattr(common, "chunks_each", lambda groups, chunks, warps: each)
    plain = common.kernel_of

    def recorded(call: launch.Call) -> object:
        grids.append(call.grid)
        return plain(call)

    monkeypatch.setattr(common, "kernel_of", recorded)
    written = run()
    monkeypatch.undo()
    for value in written:
        assert not (value.isnan() if value.is_floating_point() else value == -777).any()
    return [value.view(BITS.get(value.dtype, value.dtype)) for value in written] + [grids]


def same(run: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    *alone, programs = results(run, 1, monkeypatch)
    *several, fewer = results(run, 3, monkeypatch)
    assert programs[0][1:] == (5, 1) and fewer[0][1:] == (2, 1)
    for a, b in zip(alone, several, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "op", ["randn", "q_sample", "q_posterior", "reparameterize", "reparameterize_backward"]
)
def test_elementwise_ops(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(3, BATCH, SIZE, dtype=dtype, count=2)
    t = torch.arange(BATCH) % 10

    def run() -> list[Tensor]:
        out, second = unwritten(BATCH, SIZE, dtype=dtype), unwritten(BATCH, SIZE, dtype=dtype)
        first, last = unwritten(BATCH, dtype=compute(dtype)), unwritten(BATCH, dtype=compute(dtype))
        noise = (SEED, None, IDS, 3, 2, False)
        if op == "randn":
            launch.randn(out, *noise)
        elif op == "q_sample":
            launch.q_sample(out, a, t, TABLE, TABLE, None, *noise)
        elif op == "q_posterior":
            launch.q_posterior(out, first, last, a, b, t, TABLE.flip(0))
            return [out, first, last]
        elif op == "reparameterize":
            launch.reparameterize(out, a, b, *noise)
        else:
            launch.reparameterize_backward(out, second, a, b, *noise)
            return [out, second]
        return [out]

    same(run, monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "op", ["noise_mse", "gaussian_kl", "discretized_gaussian_nll", "vlb_terms"]
)
def test_sums_and_their_gradients(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Case(op, (2, 2, LONG // 2), dtype)

    def run() -> list[Tensor]:
        out, workspace = unwritten(2, dtype=compute(dtype)), unwritten(2 * 5, dtype=compute(dtype))
        long.run(out, workspace)
        return [out, workspace]

    same(run, monkeypatch)
    case = Case(op, (BATCH, 2, SIZE // 2), dtype)
    a, b, c, d = case.values
    grad = normal(5, BATCH, dtype=compute(dtype))[0]

    def backward() -> list[Tensor]:
        gradients = [unwritten(BATCH, SIZE, dtype=dtype) for _ in range(4)]
        if op == "noise_mse":
            noise = (SEED, None, IDS, 3, 2, False)
            launch.noise_mse_backward(gradients[0], grad, a, case.weight, *noise)
            return gradients[:1]
        if op == "gaussian_kl":
            launch.gaussian_kl_backward(*gradients, grad, rows(a), rows(b), rows(c), rows(d))
            return gradients
        if op == "discretized_gaussian_nll":
            launch.discretized_gaussian_nll_backward(
                *gradients[:2], grad, rows(a), rows(b), rows(c)
            )
            return gradients[:2]
        both = unwritten(BATCH, 2 * SIZE, dtype=dtype)
        table = torch.from_numpy(vlb_table())
        launch.vlb_terms_backward(both, grad, a, b, c, table, case.t)
        return [both]

    same(backward, monkeypatch)


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_a_step_in_place(guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng([8, guided])
    table, used = random_table(generator, learned=True)
    x_t, output = normal(1, BATCH, SIZE)[0].float(), normal(2, (1 + guided) * BATCH, 2 * SIZE)[0]
    slots, row = normal(4, 4, BATCH, SIZE)[0].float(), torch.arange(BATCH) % 6
    gamma = torch.tensor([0, 1, 2.5, -0.3] * 4)[:BATCH] if guided else None

    def run() -> list[Tensor]:
        state, remembered, following = x_t.clone(), slots.clone(), torch.full_like(row, -777)
        x0, network_input = unwritten(BATCH, SIZE), unwritten((1 + guided) * BATCH, SIZE)
        launch.reverse_step(
            StepArguments(
                state,
                output.float(),
                torch.from_numpy(table),
                row,
                out=state,
                slots=remembered,
                seed=SEED,
                sample_ids=IDS,
                guidance=gamma,
                used=used,
                slots_out=remembered,
                x0_out=x0,
                input_out=network_input,
                row_out=following,
            )
        )
        return [state, remembered, x0, network_input, following]

    same(run, monkeypatch)


@pytest.mark.parametrize(
    ("batch", "size", "grid"),
    [
        (256, 3 * 32 * 32, (256, 3, 1)),  # 768 tiles: fewer than the GPU holds
        (1024, 3 * 128 * 128, (1024, 6, 1)),  # 8 chunks of a program
        (176, 3 * 128 * 128, (176, 24, 1)),  # 2 chunks leave 4,224 programs
        (1, 2**40, (1, 65533, 1)),  # a grid has at most 65,535
        (4, 0, (1, 1, 1)),
    ],
)
def test_as_many_chunks_as_leave_the_gpu_full(
    batch: int, size: int, grid: tuple[int, int, int]
) -> None:
    out = torch.empty(0).expand(batch, 0) if size == 0 else torch.empty(1).expand(batch, size)
    call = launch.randn_call(out, 1, None, None, 0, 0, False)
    assert call.grid == grid
    arguments = call.arguments
    chunks = max(1, -(-size // arguments["E"]))
    assert grid[1] * arguments["each"] >= chunks > (grid[1] - 1) * arguments["each"]
