"""Batches in the order of a plan, made by any number of workers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdiff.data import Condition, Data, batches, load_fashion_mnist, load_toy

pytestmark = pytest.mark.cpu_only
SETS = {"images": load_fashion_mnist("bundled-test"), "points": load_toy("moons", n=50)}


class Broken:
    """Points whose example 7 cannot be read."""

    examples, shape, levels, classes, name = 50, (2,), None, (), "broken"

    def batch(self, index: Tensor, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Condition]:
        if (index == 7).any():
            raise ValueError("fastdiff.data: expected a picture, got 7.")
        return torch.zeros(len(index), 2), {"process": torch.full((len(index),), os.getpid())}


def endless() -> Iterator[tuple[Tensor, int]]:
    for step in itertools.count():
        yield torch.tensor([step % 50, (7 * step + 1) % 50]), step // 3


@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_order_is_the_plan_s(name: str, workers: int) -> None:
    data: Data = SETS[name]
    before = torch.get_rng_state()
    found = list(itertools.islice(batches(data, endless(), seed=3, workers=workers), 7))
    assert torch.equal(before, torch.get_rng_state()), "the global generator is the user's"
    for (index, x0, labels), (expected, epoch) in zip(found, endless(), strict=False):
        assert torch.equal(index, expected)
        x, y = data.batch(expected, seed=3, epoch=epoch)
        assert torch.equal(x0, x) and isinstance(labels, Tensor) and torch.equal(labels, y)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_place_and_as_it_was(workers: int) -> None:
    plan = [(torch.tensor([i]), 0) for i in range(5, 10)]
    made, seen = batches(Broken(), plan, seed=0, workers=workers), []
    with pytest.raises(ValueError) as caught:
        for index, _, condition in made:
            seen.append(int(index))
            assert isinstance(condition, dict)
            assert (int(condition["process"]) == os.getpid()) == (workers == 0)
    assert str(caught.value) == "fastdiff.data: expected a picture, got 7." and seen == [5, 6]


def test_a_number_of_workers_below_zero() -> None:
    with pytest.raises(ValueError, match=r"^fastdiff\.data: expected workers >= 0, got -1\."):
        next(batches(Broken(), [], seed=0, workers=-1))
