"""Sample ids outside [0, 2**56): their upper bits are the stream's, so that they name no sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.solvers import make_plan

SCHEDULE = Schedule.linear(1000)
ALPHA, SIGMA = torch.tensor(SCHEDULE.alpha), torch.tensor(SCHEDULE.sigma)
STOCHASTIC = torch.tensor(make_plan(SCHEDULE, solver="ddpm", steps=5).table)
DETERMINISTIC = torch.tensor(make_plan(SCHEDULE, solver="ddim", steps=5).table)
T = torch.tensor([1, 2, 3])
FIRST = torch.zeros(3, dtype=torch.int64)


def _x(seed: int, size: int) -> Tensor:
    return torch.randn(3, size, generator=torch.Generator().manual_seed(seed))


def _step(ids: Tensor, size: int, table: Tensor = STOCHASTIC) -> Tensor:
    return ops.reverse_step(_x(0, size), _x(1, size), table, FIRST, seed=1, sample_ids=ids)


def _bound_step(ids: Tensor, size: int) -> Tensor:
    out = torch.empty(3, size)
    arguments = ops.step.StepArguments(
        _x(0, size), _x(1, size), STOCHASTIC, FIRST, seed=1, sample_ids=FIRST, out=out
    )
    bound = arguments.bind("sample_ids")
    bound(torch.arange(3))
    bound(ids)
    return out


CALLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "randn": lambda ids, n: ops.randn((3, n), seed=1, sample_ids=ids),
    "q_sample": lambda ids, n: ops.q_sample(_x(0, n), T, ALPHA, SIGMA, seed=1, sample_ids=ids),
    "reparameterize": lambda ids, n: ops.reparameterize(_x(0, n), _x(1, n), seed=1, sample_ids=ids),
    "noise_mse": lambda ids, n: ops.noise_mse(_x(0, n), seed=1, sample_ids=ids),
    "reverse_step": _step,
    "a bound reverse_step": _bound_step,
}


@pytest.mark.parametrize("size", [3, 1500])
@pytest.mark.parametrize("bad", [-1, 2**56, -(2**63)])
@pytest.mark.parametrize("name", CALLS)
def test_ids_that_name_no_sample_are_refused(name: str, bad: int, size: int, backend: str) -> None:
    """The CPU raises; a GPU, which is not read, makes that sample NaN and no other."""
    ids = torch.tensor([5, bad, 2**56 - 1])
    if backend not in ("cuda", "triton"):
        with pytest.raises(IndexError) as error:
            CALLS[name](ids, size)
        sentence = f"expected sample_ids in [0, 2**56), got {bad} at index 1."
        assert str(error.value) == f"fastdiff.{name.split()[-1]}: {sentence}"
        return
    result = CALLS[name](ids, size)
    alright = CALLS[name](torch.tensor([5, 6, 2**56 - 1]), size)
    assert result[1].isnan().all()
    assert torch.equal(result[[0, 2]], alright[[0, 2]]) and not alright.isnan().any()


@pytest.mark.parametrize("bad", [-1, 2**56])
def test_ids_are_not_looked_at_where_no_noise_is_drawn(bad: int, backend: str) -> None:
    ids = torch.tensor([5, bad, 7])
    assert not _step(ids, 4, DETERMINISTIC).isnan().any()
    given = {"noise": _x(2, 4), "sample_ids": ids}
    assert not ops.q_sample(_x(0, 4), T, ALPHA, SIGMA, **given).isnan().any()
