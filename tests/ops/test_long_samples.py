"""Rows that need a number of a whole sample, where a sample is longer than one GPU program reads.

Rescaled guidance and the dynamic threshold read samples of more than 32,768 elements in parts
(kernels/README.md section 4). How a sample is divided must follow from its size alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.cases import name, truth
from tolerances import ROUNDING
from torch import Tensor

from fastdiff import Sampler, Schedule, ops, reference
from fastdiff.backend import library
from fastdiff.ops.step import HEAD_ROWS, WHOLE, StepArguments, workspace_for, workspace_rows
from fastdiff.table import COLUMNS, INDEX

SIZES = (WHOLE, WHOLE + 1, 45_000)  # one part, three of which the last is short, three
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def inputs(batch: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x, the network's output for guidance, and guidance, each sample with its own."""
    x, c, u = (
        torch.stack(
            [
                torch.randn(size, generator=torch.Generator().manual_seed(9 * b + k))
                for b in range(batch)
            ]
        ).to(dtype)
        for k in range(3)
    )
    x[:, ::5] = 0.25  # ties
    gamma = torch.linspace(-1, 7.5, batch, dtype=torch.float64 if dtype == torch.float64 else None)
    return x, torch.cat([c, u]), gamma


def table_of(rescale: float = 0.0, threshold: bool = True) -> Tensor:
    """Returns two rows that differ in the quantile of their dynamic threshold."""
    table = np.zeros((2, len(COLUMNS)))
    table[:, INDEX["network"]] = table[:, INDEX["guidance_weight"]] = 1
    table[:, INDEX["guidance_rescale"]] = rescale
    table[:, INDEX["x0_x"]], table[:, INDEX["x0_out"]], table[:, INDEX["x.x0"]] = 0.7, -0.4, 1
    if threshold:
        table[:, INDEX["clip_mode"]], table[:, INDEX["clip_bound"]] = 2, 9
        table[:, INDEX["clip_ratio"]] = 0.995, 0.5
    return torch.from_numpy(table)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("size", SIZES)
def test_the_threshold_has_the_oracles_bits(size: int, dtype: torch.dtype, backend: str) -> None:
    x, output, gamma = inputs(2, size, dtype)
    table, row = table_of(), torch.tensor([0, 1])
    got = ops.reverse_step(x, output, table, row, guidance=gamma)
    want = reference.reverse_step(
        truth(x), truth(output), table.numpy(), row.numpy(), guidance=gamma.numpy()
    )
    assert torch.equal(got, torch.from_numpy(want.x_s).to(dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name)
@pytest.mark.parametrize("size", SIZES)
def test_the_factor_equals_the_oracles(size: int, dtype: torch.dtype, backend: str) -> None:
    """To a few roundings: its statistics are summed in another order."""
    x, output, gamma = inputs(2, size, dtype)
    table, row = table_of(0.7, threshold=False), torch.tensor([0, 1])
    got = ops.reverse_step(x, output, table, row, guidance=gamma)
    want = reference.reverse_step(
        truth(x), truth(output), table.numpy(), row.numpy(), guidance=gamma.numpy()
    )
    limit = 16 * ROUNDING[name(dtype)]
    np.testing.assert_allclose(truth(got), want.x_s, rtol=limit, atol=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("size", SIZES)
def test_a_sample_has_the_same_bits_in_any_batch(
    size: int, dtype: torch.dtype, backend: str
) -> None:
    """Alone, and at another place of a batch of another size."""
    x, output, gamma = inputs(5, size, dtype)
    table, row = table_of(0.7), torch.tensor([0, 1, 0, 1, 0])
    together = ops.reverse_step(x, output, table, row, guidance=gamma)
    for chosen in ([0], [3], [4, 1, 3]):
        at = torch.tensor(chosen)
        some = ops.reverse_step(
            x[at], output[torch.cat([at, at + 5])], table, row[at], guidance=gamma[at]
        )
        assert torch.equal(some, together[at]), chosen  # type: ignore[arg-type]


def test_a_bound_step_equals_the_op(backend: str) -> None:
    """In one workspace, whatever an earlier call left in it."""
    x, output, gamma = inputs(3, 45_000, torch.float32)
    table, row, out = table_of(0.7), torch.tensor([0, 1, 0]), torch.empty_like(x)
    workspace = workspace_for(x).fill_(torch.nan)
    step = StepArguments(x, None, table, row, guidance=gamma, out=out, workspace=workspace).bind(
        "model_output", "row"
    )
    for k in range(3):
        other = output.roll(k, 0), row.roll(k)
        step(*other)
        expected = ops.reverse_step(x, other[0], table, other[1], guidance=gamma)
        assert torch.equal(out, expected), k  # type: ignore[arg-type]


def test_a_samplers_samples_do_not_depend_on_the_batch(backend: str) -> None:
    """The loop's workspace has memory for the parts."""
    sampler = Sampler(
        lambda x, t, y: 0.9 * x + y,
        Schedule.linear(1000),
        solver="ddpm",
        steps=3,
        dynamic_threshold=0.9,
        guidance_rescale=0.5,
        guidance_scale=3.0,
    )

    start, _, _ = inputs(3, 40_000, torch.float32)

    def sample(ids: list[int]) -> Any:
        def y(sign: float) -> dict[str, Any]:
            return {"y": torch.tensor([[sign * (i + 1)] for i in ids])}

        return sampler.sample(x_T=start[ids], seed=1, sample_ids=ids, cond=y(0.1), uncond=y(-0.1))

    together = sample([0, 1, 2])
    assert torch.equal(sample([2]), together[2:]) and torch.equal(sample([1, 0])[1], together[0])


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name)
def test_kernels_of_a_step(dtype: torch.dtype, emulated: Any) -> None:
    """CUDA C++ takes two for the factor, and one for each digit of the threshold and one more."""
    if emulated is None:
        pytest.skip("no C++ compiler for the CUDA kernels' emulation")
    names = ("reverse_step_rescale", "reverse_step_threshold", "reverse_step")
    digits = torch.finfo(dtype).bits // 8
    for size, expected in ((WHOLE, [1, 1, 1]), (WHOLE + 1, [2, digits + 1, 1])):
        x, output, gamma = inputs(2, size, dtype)
        row = torch.tensor([0, 1])
        before = [library.launches(op, "cuda") for op in names]
        ops.reverse_step(x, output, table_of(0.7), row, guidance=gamma, backend="cuda")
        after = [library.launches(op, "cuda") for op in names]
        assert [b - a for a, b in zip(before, after, strict=True)] == expected


def test_a_workspace_that_does_not_fit_is_refused() -> None:
    x, output, gamma = inputs(2, WHOLE + 1, torch.float32)
    rows = workspace_rows(WHOLE + 1, torch.float32)
    given: dict[str, Any] = {"guidance": gamma, "out": torch.empty_like(x), "used": -1}

    def call(workspace: Tensor) -> None:
        ops.reverse_step(
            x, output, table_of(0.7), torch.tensor([0, 1]), workspace=workspace, **given
        )

    with pytest.raises(
        ValueError, match=rf"expected workspace of shape \[{rows}, 2\], got \[6, 2\]"
    ):
        call(torch.empty(HEAD_ROWS, 2))
    with pytest.raises(
        ValueError, match="begins at a multiple of 8 bytes in its storage, got one at 4"
    ):
        call(torch.empty(2 * rows + 1)[1:].view(rows, 2))
    call(torch.empty(2 * rows + 2)[2:].view(rows, 2))
