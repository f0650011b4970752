"""Summaries stream: their numbers are those of all features at once; small sets are warned of."""

from __future__ import annotations

import warnings

import pytest
import torch

from fastdiff.metrics import Summary, compare, kernel_distance, neighbours, raw, summarize
from fastdiff.metrics.distances import frechet_distance
from fastdiff.metrics.moments import Moments


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 2, 2), generator=generator, dtype=torch.uint8)


def test_the_numbers_are_those_of_all_features_at_once() -> None:
    a, b = pictures(90), pictures(70, seed=1) // 2
    x, y = (v.flatten(1) / 127.5 - 1 for v in (a, b))
    told: list[int] = []
    first = summarize(a.split(11), raw(), progress=told.append)
    second = summarize([b[:0], b[:33], b[33:]], raw(), keep=50)
    assert sum(told) == 90 and first.shape == (1, 2, 2)
    with pytest.warns(UserWarning, match="expected 10,000 samples or more, got 70"):
        found = compare(first, second)
    whole = [Moments(4), Moments(4)]
    for moments, v in zip(whole, (x, y), strict=True):
        moments.add(v)
    assert found["frechet"] == pytest.approx(frechet_distance(*whole), rel=1e-10)
    assert found["kernel"] == pytest.approx(kernel_distance(x, y[:50]).value, rel=1e-6)
    expected = neighbours(x, y[:50])
    for name in ("precision", "recall", "density", "coverage"):
        assert found[name] == getattr(expected, name)
    assert found["neighbours_of"] == [90, 50]


def test_statistics_alone_have_a_frechet_distance_alone() -> None:
    a = summarize([pictures(60)], raw())
    moments = Moments(4)
    moments.n, moments.scatter = None, torch.eye(4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="got 60"):
        found = compare(a, Summary(moments, torch.empty(0, 4), ""))
    assert set(found) == {"frechet"}
    other = Summary(moments, torch.empty(0, 4), "inception")
    with pytest.raises(ValueError, match="features of one network in both sets, got 'raw'"):
        compare(a, other)


@pytest.mark.parametrize("n", [2, 4, 5, 9])
def test_few_samples_are_compared_as_far_as_they_reach(n: int) -> None:
    sets = [summarize([pictures(n, seed)], raw()) for seed in (0, 1)]
    with pytest.warns(UserWarning) as caught:
        found = compare(*sets)
    assert len(caught) == 1
    singular = "covariance is singular" in str(caught[0].message)
    assert singular == (n <= 4), "four features"
    assert ("kernel" in found, "precision" in found) == (n >= 4, n > 5)


def test_enough_samples_bring_no_warning() -> None:
    sets = [summarize([pictures(10_000, seed)], raw(), keep=20) for seed in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(*sets)
    assert found["frechet"] < 0.01


def test_what_is_no_set_is_refused() -> None:
    for batches in ([], [pictures(1)], [pictures(0)]):
        with pytest.raises(ValueError, match="expected at least 2 samples in a set, got [01]"):
            summarize(batches, raw())
    with pytest.raises(ValueError, match=r"pictures of one shape in a set, got \[1, 2, 2\]"):
        summarize([pictures(3), pictures(3).reshape(3, 1, 1, 4)], raw())
