"""The Brownian tree: the law of W, and that it is a function of (seed, sample, time) alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerances import moments

from fastdiff.sampling.adaptive import BrownianTree

N = 200_000


def tree(n: int = N, **options) -> BrownianTree:
    return BrownianTree((1, n), seed=7, **({"low": 0.0, "high": 8.0, "depth": 8} | options))


@pytest.mark.parametrize("t", [1 / 32, 0.5, 1.0, 3.40625, 4.0, 7.96875, 8.0])
def test_marginals(t: float) -> None:
    w = tree().increment(0.0, t).double() / math.sqrt(t)
    limits = moments(N)
    assert abs(float(w.mean())) < limits["mean"]
    assert abs(float(w.var()) - 1) < limits["variance"]
    assert abs(float((w**4).mean()) - 3) < limits["kurtosis"]


def test_the_covariance_is_the_smaller_time_exactly() -> None:
    """Cov(W_s, W_t) = min(s, t) from the weights themselves, without sampling error, at every pair
    of the grid.
    """
    small = BrownianTree((1, 1), seed=0, low=-1.0, high=3.0, depth=5)
    points = range(0, 33)
    weights = [small.weights(i) for i in points]
    for i, j in itertools.product(points, points):
        covariance = sum(w * weights[j].get(node, 0.0) for node, w in weights[i].items())
        assert covariance == pytest.approx(min(i, j) * 4.0 / 32, abs=1e-14)


def test_increments_over_disjoint_intervals_are_independent() -> None:
    one = tree()
    times = [0.0, 0.25, 0.28125, 1.0, 3.0, 3.0625, 8.0]
    z = torch.cat([one.normal(a, b) for a, b in itertools.pairwise(times)]).double()
    limits = moments(N)
    correlation = z @ z.T / N - torch.eye(len(z), dtype=torch.float64)
    off = correlation[~torch.eye(len(z), dtype=torch.bool)]
    assert float(off.abs().max()) < limits["correlation"]
    assert float(((z**2 - 1) @ (z**2 - 1).T / N)[0, 1:].abs().max()) < 2 * limits["variance"], (
        "nor do squares know"
    )
    assert float(correlation.diagonal().abs().max()) < limits["variance"]


def test_additivity_and_direction() -> None:
    one = tree(1000)
    for a, b, c in [(0.5, 1.0, 2.0), (0.03125, 5.0, 7.5), (3.0, 3.03125, 3.0625)]:
        whole, parts = one.increment(a, c), one.increment(a, b) + one.increment(b, c)
        torch.testing.assert_close(whole, parts, rtol=0, atol=5e-6)
        assert torch.equal(one.increment(c, a), -whole)
        torch.testing.assert_close(one.normal(a, c) * math.sqrt(c - a), whole, rtol=1e-6, atol=1e-7)


def test_a_sample_is_the_same_alone_in_any_batch_and_after_any_query() -> None:
    whole = BrownianTree((5, 3, 7), seed=11)
    z = whole.normal(-2.0, -1.5)
    whole.normal(0.0, 4.0)
    assert torch.equal(whole.normal(-2.0, -1.5), z)
    for i in range(5):
        alone = BrownianTree((1, 3, 7), seed=11, sample_ids=torch.tensor([i]))
        assert torch.equal(alone.normal(-2.0, -1.5)[0], z[i])
    seeds = BrownianTree((2, 3, 7), seed=torch.tensor([11, 12]), sample_ids=torch.tensor([4, 4]))
    assert torch.equal(seeds.normal(-2.0, -1.5)[0], z[4])
    assert not torch.equal(seeds.normal(-2.0, -1.5)[1], z[4])


def test_times_are_held_to_the_grid_and_errors_name_the_remedy() -> None:
    one = tree(8)
    assert torch.equal(one.normal(1.0 + 1e-9, 2.0 - 1e-9), one.normal(1.0, 2.0))
    with pytest.raises(
        ValueError, match="at least 0.0312 apart, got 1.0 and 1.001. Take a deeper tree"
    ):
        one.normal(1.0, 1.001)
    with pytest.raises(ValueError, match="expected a time in \\[0.0, 8.0\\], got 9.0"):
        one.increment(0.0, 9.0)
    with pytest.raises(ValueError, match="expected low < high"):
        tree(low=8.0)


def test_float64_and_float32_follow_one_path() -> None:
    wide, narrow = tree(100, dtype=torch.float64), tree(100)
    torch.testing.assert_close(
        wide.normal(0.3125, 6.5), narrow.normal(0.3125, 6.5).double(), rtol=0, atol=2e-6
    )
