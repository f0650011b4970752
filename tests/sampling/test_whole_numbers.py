"""Sizes, counts and seeds of any whole type: NumPy's integers count as Python's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import Sampler, Schedule
from fastdiff.whole import whole


def _net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.1 * x


def _sampler(**settings: Any) -> Sampler:
    return Sampler(_net, Schedule.linear(100), **settings)


USES: dict[str, Callable[[Any], Any]] = {
    "the sizes of randn": lambda n: fastdiff.randn((n, n), seed=1),
    "the seed of randn": lambda n: fastdiff.randn((2, 3), seed=n),
    "the step of randn": lambda n: fastdiff.randn((2, 3), seed=1, step=n),
    "the seed of reparameterize": lambda n: fastdiff.reparameterize(
        torch.zeros(2, 3), torch.zeros(2, 3), seed=n
    ),
    "the length of a schedule": lambda n: torch.tensor(Schedule.linear(n).log_snr.tolist()),
    "the steps of a sampler": lambda n: _sampler(steps=n).sample((2, 3), seed=0),
    "the sizes of a sample": lambda n: _sampler(steps=3).sample((n, n), seed=0),
    "the seed of a sample": lambda n: _sampler(steps=3).sample((2, 3), seed=n),
    "network_batch": lambda n: _sampler(steps=3, network_batch=n).sample((2, 3), seed=0),
    "start": lambda n: _sampler(steps=4).sample(x_T=torch.ones(2, 3), start=n, seed=0),
    "the groups of group_norm_silu": lambda n: fastdiff.ops.group_norm_silu(
        torch.arange(24.0).reshape(2, 3, 4), n, torch.ones(3), torch.zeros(3)
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy_are_integers(use: str, kind: Any) -> None:
    assert torch.equal(USES[use](kind(3)), USES[use](3))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("value", [1.5, np.float64(2.0), "2"])
def test_other_values_are_refused(use: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"fastdiff\.\S+: expected"):
        USES[use](value)


def test_whole_numbers() -> None:
    assert [whole(v) for v in (3, np.int64(3), np.uint8(3), torch.tensor(3))] == [3] * 4
    assert all(type(whole(v)) is int for v in (3, np.int64(3), np.uint8(3)))
    assert [whole(v) for v in (True, np.bool_(True), 1.0, np.float32(1), "1", None)] == [None] * 6


def test_an_image_of_another_dtype_is_named_as_it_was_passed() -> None:
    picture = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"expected image as a floating tensor .* got torch.uint8"):
        _sampler(steps=4).sample(image=picture, strength=0.5, seed=0)
    with pytest.raises(TypeError, match=r"expected x_T as a floating tensor .* got torch.uint8"):
        _sampler(steps=4).sample(x_T=picture, seed=0)
