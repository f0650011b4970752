"""group_norm_silu in Triton's interpreter: the bits of eager torch, and the oracle's values.

tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, compute, name, poisoned, same_bits
from fastdiff_kernels import launch
from tolerances import GROUP_NORM, ROUNDING

from fastdiff.backend.eager.group_norm_silu import chunks
from fastdiff.backend.eager.group_norm_silu import group_norm_silu as eager
from fastdiff.reference.group_norm_silu import group_norm_silu as oracle

SHAPES = [
    ((2, 8, 70), 2),
    ((1, 40, 9), 4),
    ((2, 6, 1), 3),
    ((1, 1, 1100), 1),
    ((1, 33, 65), 1),
    ((2, 1, 5), 1),
    ((1, 130, 3), 2),
]
COUNTED = ("group_norm_moments", "group_norm_statistics", "group_norm_silu")


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_group_norm_silu(
    dtype: torch.dtype, shape: tuple[int, int, int], groups: int, last: bool
) -> None:
    batch, channels, positions = shape
    generator = torch.Generator().manual_seed(channels * positions)

    def normal(*size: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(of)

    x = (normal(*shape, of=torch.float64) * 1.5 + 0.75).to(dtype)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if last else x
    scale, shift = normal(batch, 2 * channels).chunk(2, dim=1)
    every = (
        normal(channels, of=dtype),
        normal(channels),
        scale,
        shift,
        normal(batch, channels, of=dtype),
    )
    for given, silu in (((None,) * 5, False), (every, True)):
        got, expected = poisoned(shape, dtype), torch.empty(shape, dtype=dtype)
        got = got.transpose(1, 2).contiguous().transpose(1, 2) if last else got
        workspace = poisoned((2 * batch * chunks(positions) * channels,), compute(dtype))
        statistics = poisoned((2 * batch * groups,), compute(dtype))
        before = launch.launches.copy()
        launch.group_norm_silu(got, workspace, statistics, x, groups, *given, 1e-5, silu)
        assert launch.launches - before == dict.fromkeys(COUNTED, 1)
        eager(expected, None, None, x, groups, *given, 1e-5, silu)
        if dtype != torch.float64:
            same_bits(got, expected.float().numpy())
        weight, bias, scale_, shift_, add = (
            None if v is None else v.double().numpy() for v in given
        )
        want = torch.from_numpy(
            oracle(
                x.double().numpy(),
                groups,
                weight,
                bias,
                scale=scale_,
                shift=shift_,
                add=add,
                silu=silu,
            )
        )
        limit = GROUP_NORM[name(compute(dtype))] * want.abs().max()
        limit = limit + ROUNDING[name(dtype)] * want.abs()
        assert ((got.double() - want).abs() <= limit).all()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_the_tiles_of_a_program_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """One tile a program, or two, of which the last program has one."""
    x = torch.randn(1, 2, 4500, generator=torch.Generator().manual_seed(0))
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if last else x
    statistics = torch.tensor([0.1, -0.2, 1.5, 0.7])
    add = torch.tensor([[1.0, -3.0]])
    results = []
    for each in (1, 2):
        monkeypatch.setattr(launch.norm, "_tiles_each", lambda *_, each=each: each)
        results.append(torch.full_like(x, -777.0))  # of x's layout
        call = launch.group_norm_silu_call(
            results[-1], statistics, x, 2, None, None, None, None, add, True
        )
        tiles = -(-4500 // call.arguments["S"])
        assert tiles % 2 == 1 and call.grid[1] == -(-tiles // each)
        launch.run(call, x)
    assert torch.equal(results[1], results[0]) and not results[0].eq(-777).any()
